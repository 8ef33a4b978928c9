import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.io.nifti import StoredVolume
from scripts.ukbb.archive import CHANNELS
from scripts.ukbb.stations import Station
from scripts.ukbb.stitching import as_integers, blend, gaps, match_factors, place, result_grid


def station(value, start_mm, n=11, step_mm=3.0, size=20, shift_mm=0.0, turn_deg=0.0):
    """A station of one value, or of random values if None, 2 mm pixels."""
    angle = np.deg2rad(turn_deg)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    affine[:3, :3] *= [2.0, 2.0, step_mm]
    affine[:3, 3] = [-size + shift_mm, -size, start_mm]
    rng = np.random.default_rng(0)
    voxels = rng.uniform(50, 100, (size, size, n)) if value is None else np.full((size, size, n), value)
    volume = StoredVolume(voxels.astype(np.float32), affine)
    return Station(1, "Dixon", None, dict.fromkeys(CHANNELS, volume), "", 0)


def stitched(stations, factors=None):
    grid = result_grid(stations, 3.0)
    blocks = [place(each, grid) for each in stations]
    return blend(blocks, factors or [1.0] * len(blocks), grid)


def test_fade_is_linear_over_the_overlap():
    channels, covered = stitched([station(100, 0), station(200, 21)])  # slices 0 to 10 and 7 to 17
    assert covered.all()
    np.testing.assert_allclose(channels[0, 3, 3, :7], 100)
    np.testing.assert_allclose(channels[0, 3, 3, 7:11], [120, 140, 160, 180])
    np.testing.assert_allclose(channels[0, 3, 3, 11:], 200)


def test_weights_of_equal_values_give_these_values():
    channels, _ = stitched([station(77, 0), station(77, 15), station(77, 30)])
    np.testing.assert_allclose(channels, 77, rtol=1e-6)


def test_narrow_station_does_not_darken_the_edges_of_its_neighbour():
    channels, covered = stitched([station(100, 0), station(100, 15, size=16, shift_mm=0)])
    assert channels.shape == (4, 20, 20, 16)
    np.testing.assert_allclose(channels[:, covered], 100, rtol=1e-6)
    assert not covered[0, 0, -1]
    assert covered[0, 0, 0]


@pytest.mark.parametrize("shift_mm", [0.7, -1.3])
def test_station_between_pixels_is_interpolated(shift_mm):
    ramp = station(0, 21, shift_mm=shift_mm)
    x_mm = ramp.volumes["fat"].affine[0, 3] + 2.0 * np.arange(20)
    for volume in ramp.volumes.values():
        volume.stored[...] = 500 + 10 * x_mm[:, None, None]
    grid = result_grid([station(100, 0), ramp], 3.0)
    block = place(ramp, grid)
    expected = 500 + 10 * (grid.affine[0, 3] + 2.0 * np.arange(grid.shape[0]))[block.box[0]]
    np.testing.assert_allclose(block.values["fat"][:, 4, 4], expected, rtol=1e-5)


def test_gap_between_stations_is_empty_and_listed():
    channels, covered = stitched([station(100, 0), station(100, 60)])
    assert gaps(covered) == [(11, 19)]
    assert not channels[..., 11:20].any()


def test_factors_make_neighbours_equal_and_keep_the_middle_station():
    stations = [station(None, 0), station(None, 15), station(None, 30)]
    for factor, each in zip((2, 1, 0.4), stations, strict=True):
        each.volumes["fat"].stored[...] *= factor  # one array for all contrasts
    grid = result_grid(stations, 3.0)
    factors, unmatched = match_factors([place(each, grid) for each in stations])
    assert factors == pytest.approx([0.5, 1, 2.5], rel=0.05)
    assert unmatched == []


def test_stations_that_do_not_touch_are_not_matched():
    stations = [station(None, 0), station(None, 60)]
    grid = result_grid(stations, 3.0)
    assert match_factors([place(each, grid) for each in stations]) == ([1.0, 1.0], [0])


def test_turned_stations_are_refused():
    with pytest.raises(InputError, match="stations are turned against each other"):
        result_grid([station(1, 0), station(1, 21, turn_deg=3)], 3.0)


def test_oblique_stations_keep_their_directions():
    stations = [station(5, 0, turn_deg=8), station(5, 21, turn_deg=8)]
    grid = result_grid(stations, 3.0)
    np.testing.assert_allclose(grid.affine[:3, :3], stations[0].volumes["fat"].affine[:3, :3], atol=1e-9)
    assert grid.shape == (20, 20, 18)


@pytest.mark.parametrize(("highest", "dtype"), [(4095.4, np.int16), (40000, np.uint16), (90000, np.uint16)])
def test_integers_hold_the_highest_intensity(highest, dtype):
    found = as_integers(np.array([[-3, 1.6, highest]], np.float32))[0]
    assert found.dtype == dtype
    assert found.tolist() == [0, 2, min(round(highest), 65535)]
