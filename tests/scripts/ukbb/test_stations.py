from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.io.nifti import StoredVolume
from scripts.ukbb import stations as module
from scripts.ukbb.archive import CHANNELS, read_series
from scripts.ukbb.stations import BREATH_HOLDS, Station, find_stations, missing_stations
from tools.ukbb_archives import FULL


def station(number, layout=FULL, *, named=True):
    """A station of the protocol without voxels to speak of."""
    place = layout[number - 1]
    affine = np.diag([1.0, 1.0, place.step_mm, 1.0])
    affine[2, 3] = place.top_mm - (place.shape[2] - 1) * place.step_mm
    volume = StoredVolume(np.broadcast_to(np.float32(1), (2, 2, place.shape[2])), affine)
    hold = BREATH_HOLDS[number - 1] if named else None
    return Station(0, "Dixon", hold, dict.fromkeys(CHANNELS, volume), "", 0)


@pytest.mark.parametrize("missing", [m for n in range(3) for m in combinations(range(1, 7), n)])
def test_numbers_follow_from_gaps_and_breath_holds(missing):
    there = [n for n in range(6, 0, -1) if n not in missing]
    numbered, unsure = module._numbered([station(n) for n in there])
    assert [each.number for each in numbered] == there
    assert missing_stations(numbered) == list(missing)
    assert not unsure


def test_numbers_that_cannot_be_known_are_noted():
    numbered, unsure = module._numbered([station(n) for n in (3, 2)])
    assert [each.number for each in numbered] == [3, 2]
    assert unsure, "they could be 4 and 3"


def test_more_stations_than_the_protocol_has_are_counted():
    numbered, unsure = module._numbered([station(6)] * 7)
    assert [each.number for each in numbered] == [7, 6, 5, 4, 3, 2, 1]
    assert not unsure


def test_no_whole_station_is_refused(archive, stations):
    path = archive([{"F": stations[0]["F"], "in": stations[0]["in"]}])
    with pytest.raises(InputError, match=r"no station is whole .station at -180 to 0 mm: no water, no opposed_phase"):
        find_stations(read_series(path)[0], Path(path))


def test_volumes_are_turned_to_ras_and_keep_their_place(sound):
    found, notes = find_stations(read_series(sound)[0], sound)
    assert notes == []
    assert [each.number for each in found] == [6, 5, 4, 3, 2, 1]
    for each in found:
        for volume in each.volumes.values():
            np.testing.assert_allclose(volume.affine[:3, :3], np.diag([11, 11, 18]), atol=1e-6)
    assert found[-1].ends_mm == pytest.approx((-180, 0))
