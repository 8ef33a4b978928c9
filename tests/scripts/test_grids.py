import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.grids import Grid, corners_mm, differences

SHAPE = (240, 240, 155)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(degrees):
    affine = AFFINE.copy()
    affine[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ AFFINE[:3, :3]
    return affine


def shifted(mm):
    affine = AFFINE.copy()
    affine[:3, 3] = 0, 0, mm
    return affine


def test_corners_are_the_centres_of_the_outer_voxels():
    found = {tuple(corner) for corner in corners_mm(Grid((3, 2, 1), np.diag([2.0, 3.0, 4.0, 1.0]))).tolist()}
    assert found == {(x, y, 0.0) for x in (0.0, 4.0) for y in (0.0, 3.0)}


@pytest.mark.parametrize("affine", [AFFINE, AFFINE + 1e-6, shifted(0.05)])
def test_same_grid_within_a_tenth_of_a_mm_has_no_differences(affine):
    assert differences(Grid(SHAPE, affine), Grid(SHAPE, AFFINE)) == ""


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid((240, 240, 26), AFFINE), "shape 240 x 240 x 26 instead of 240 x 240 x 155, centre 64.5 mm away"),
        (Grid(SHAPE, shifted(3)), "centre 3.0 mm away"),
        (Grid((1, 1, 1), shifted(0)), "shape 1 x 1 x 1 instead of 240 x 240 x 155, centre 185.7 mm away"),
        (Grid(SHAPE, AFFINE @ np.diag([1, 1, 2, 1])), "spacing 1 x 1 x 2 instead of 1 x 1 x 1 mm, centre 77.0 mm away"),
        (Grid(SHAPE, np.diag([1.0, -1, 1, 1])), "axes RPS instead of LPS, centre 239.0 mm away"),
    ],
)
def test_difference_is_told_in_mm(grid, message):
    assert differences(grid, Grid(SHAPE, AFFINE)) == message


def test_turn_too_small_for_any_entry_of_the_affine_is_seen_at_the_corners():
    """A tenth of a degree changes no entry by 0.002, and the far corner by half a millimetre."""
    assert np.abs(turned(0.1) - AFFINE).max() < 0.002
    assert differences(Grid(SHAPE, turned(0.1)), Grid(SHAPE, AFFINE)).startswith("turned by 0.1 degrees")
    assert "turned by 17.0 degrees" in differences(Grid(SHAPE, turned(17)), Grid(SHAPE, AFFINE))
