"""The stations of a neck-to-knee scan: which series belong together, which were repeated, which are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.common.errors import InputError
from scripts.common.grids import describe_mismatch
from scripts.io.dicom import check_slices, read_volume
from scripts.io.nifti import StoredVolume
from scripts.ukbb.archive import CHANNELS, Series

BREATH_HOLDS = (False, True, True, True, False, False)
"""Which stations of the protocol are scanned in breath-hold, from the neck to the knees."""
REPEAT_SECONDS = 10.0
"""Series of one scan are stored within less; the next scan ends later."""
MAX_SEAM_MM = 30.0
"""Distance between neighbours that do not overlap; a missing station leaves more than 100 mm."""
_STEP_MM, _OVERLAP_MM = 190.0, 36.0  # from one station of the protocol to the next, about
_SAME_STATION = 0.5  # share of the shorter series; neighbours overlap by about 0.2


@dataclass(frozen=True)
class Station:
    """The four contrasts of a station.

    Attributes:
        number: from 1 at the neck.
        name: of its series, without the contrast.
        breath_hold: see `Series`.
        volumes: contrast to volume, float32, its axes nearest to RAS.
        unequal: how grids differ from that of the in-phase volume; "" if they do not.
        repeats: older scans of this station, which are not used.
    """

    number: int
    name: str
    breath_hold: bool | None
    volumes: dict[str, StoredVolume]
    unequal: str
    repeats: int

    @property
    def ends_mm(self) -> tuple[float, float]:
        """Lowest and highest position that all contrasts cover, in mm towards the head."""
        ends = [_ends_mm(volume) for volume in self.volumes.values()]
        return max(low for low, _ in ends), min(high for _, high in ends)


@dataclass(frozen=True)
class _Read:
    """A series with its volume."""

    series: Series
    volume: StoredVolume


def find_stations(series: Sequence[Series], path: Path) -> tuple[list[Station], list[str]]:
    """Group series by position, keep the newest whole scan of each station, and number the stations from the neck.

    Series belong to one station if more than half of the shorter one lies beside the other. Of the scans of one
    station, the newest with all four contrasts is used. Stations are numbered by the order and the breath-holds of the
    protocol, so that a gap gets the numbers of what is missing.

    Args:
        series: of one archive.
        path: of the archive, for messages.

    Returns:
        The stations from the feet to the head, and notes on what is not used or missing.

    Raises:
        InputError: no station is whole.
    """
    read, notes = _volumes(series, path)
    stations = []
    for group in _by_position(read):
        scans = _scans(group)
        whole = [scan for scan in scans if len(scan) == len(CHANNELS)]
        if not whole:
            low, high = _ends_mm(group[0].volume)
            lacking = [name for name in CHANNELS if name not in scans[-1]]
            notes.append(f"station at {low:.0f} to {high:.0f} mm: no {', no '.join(lacking)}; left out")
            continue
        if scans[-1] is not whole[-1]:
            notes.append(f"the newest scan of {whole[-1]['fat'].series.name} is not whole; an older one is used")
        stations.append(_station(whole[-1], repeats=len(scans) - 1))
    crossed = [station for station in stations if station.ends_mm[0] >= station.ends_mm[1]]
    notes += [f"{station.name}: its contrasts do not overlap ({station.unequal}); left out" for station in crossed]
    stations = [station for station in stations if station not in crossed]
    if not stations:
        raise InputError(f"{path}: no station is whole ({'; '.join(notes)}); download the archive again.")
    numbered, unsure = _numbered(stations)
    if unsure:
        notes.append("the numbers of the stations are one of several possibilities")
    return numbered, notes


def missing_stations(stations: Sequence[Station]) -> list[int]:
    """Return the numbers of the protocol's stations that are not there."""
    return sorted(set(range(1, len(BREATH_HOLDS) + 1)) - {station.number for station in stations})


def _volumes(series: Sequence[Series], path: Path) -> tuple[list[_Read], list[str]]:
    """Read series as volumes near RAS, and describe those that cannot be read."""
    read, notes = [], []
    for each in series:
        try:
            volume = read_volume(check_slices(each.slices, f"{path.name}: {each.name}"), f"{path.name}: {each.name}")
        except InputError as error:
            notes.append(f"left out a series: {error}")
            continue
        turn = nib.orientations.io_orientation(volume.affine)
        affine = volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.stored.shape)
        stored = nib.orientations.apply_orientation(volume.stored, turn)
        read.append(_Read(replace(each, slices=[]), StoredVolume(stored, affine)))
    return read, notes


def _ends_mm(volume: StoredVolume) -> tuple[float, float]:
    """Return the positions of the lowest and the highest slice along their normal."""
    normal = volume.affine[:3, 2] / np.linalg.norm(volume.affine[:3, 2])
    last = volume.affine @ [0, 0, volume.stored.shape[2] - 1, 1]
    return float(volume.affine[:3, 3] @ normal), float(last[:3] @ normal)


def _by_position(read: Sequence[_Read]) -> list[list[_Read]]:
    """Group series that cover the same part of the body, from the feet to the head."""
    groups: list[list[_Read]] = []
    for item in sorted(read, key=lambda item: sum(_ends_mm(item.volume))):
        if groups and _shared(groups[-1][0].volume, item.volume) > _SAME_STATION:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _shared(volume: StoredVolume, other: StoredVolume) -> float:
    """Return the length that two volumes share, as a share of the shorter one."""
    (low, high), (other_low, other_high) = _ends_mm(volume), _ends_mm(other)
    return (min(high, other_high) - max(low, other_low)) / max(min(high - low, other_high - other_low), 1e-6)


def _scans(group: Sequence[_Read]) -> list[dict[str, _Read]]:
    """Divide the series of a station into scans, oldest first, each with one series per contrast."""
    scans: list[dict[str, _Read]] = []
    before = None
    for item in sorted(group, key=lambda item: item.series.time_s):
        late = before is None or item.series.time_s - before > REPEAT_SECONDS
        if late or item.series.contrast in scans[-1]:
            scans.append({})
        scans[-1][item.series.contrast] = item
        before = item.series.time_s
    return scans


def _station(scan: dict[str, _Read], *, repeats: int) -> Station:
    volumes = {name: scan[name].volume for name in CHANNELS}
    reference = volumes["in_phase"].grid
    found = {name: describe_mismatch(volume.grid, reference) for name, volume in volumes.items()}
    unequal = ", ".join(f"{name}: {difference}" for name, difference in found.items() if difference)
    series = scan["in_phase"].series
    name = series.name.rpartition("_")[0]
    return Station(0, name, series.breath_hold, volumes, unequal, repeats)


def _numbered(stations: Sequence[Station]) -> tuple[list[Station], bool]:
    """Number stations, given from the feet to the head, so that breath-holds and gaps fit the protocol best.

    Returns:
        The stations in the same order, and whether other numbers fit as well.
    """
    down = list(reversed(stations))
    absent = [_absent_between(upper, lower) for upper, lower in pairwise(down)]

    def misfits(chosen: tuple[int, ...]) -> int:
        held = [(s.breath_hold, BREATH_HOLDS[n - 1]) for s, n in zip(down, chosen, strict=True)]
        steps = zip(pairwise(chosen), absent, strict=True)
        return sum(own not in (None, usual) for own, usual in held) + sum(abs(b - a - 1 - n) for (a, b), n in steps)

    choices = list(combinations(range(1, len(BREATH_HOLDS) + 1), len(down))) or [tuple(range(1, len(down) + 1))]
    ranks = [misfits(chosen) if len(choices) > 1 else 0 for chosen in choices]
    best = choices[ranks.index(min(ranks))]
    numbered = [replace(station, number=number) for station, number in zip(down, best, strict=True)]
    return numbered[::-1], ranks.count(min(ranks)) > 1


def _absent_between(upper: Station, lower: Station) -> int:
    """Return how many stations fit into the gap between two."""
    gap_mm = upper.ends_mm[0] - lower.ends_mm[1]
    return max(1, round((gap_mm + _OVERLAP_MM) / _STEP_MM)) if gap_mm > MAX_SEAM_MM else 0
