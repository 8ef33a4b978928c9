import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.common.errors import InputError
from scripts.common.grids import Grid, GridArray, check_same_grid, corners_mm, describe_mismatch

SHAPE = (240, 240, 155)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotated(degrees):
    affine = AFFINE.copy()
    affine[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ AFFINE[:3, :3]
    return affine


def shifted(mm):
    affine = AFFINE.copy()
    affine[:3, 3] = 0, 0, mm
    return affine


def centred(affine, shape=SHAPE):
    """Move a grid so that its centre lies at the origin."""
    moved = affine.copy()
    moved[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return moved


def test_corners_are_those_of_the_outer_voxels():
    found = {tuple(corner) for corner in corners_mm(Grid((3, 2, 1), np.diag([2.0, 3.0, 4.0, 1.0]))).tolist()}
    assert found == {(x, y, z) for x in (-1.0, 5.0) for y in (-1.5, 4.5) for z in (-2.0, 2.0)}


def test_single_slices_of_another_thickness_or_direction_differ():
    """The centres of their voxels are the same."""
    thin, thick, flipped = (Grid((64, 64, 1), np.diag([1.0, 1.0, mm, 1.0])) for mm in (1, 5, -1))
    assert describe_mismatch(thick, thin) == "spacing 1 x 1 x 5 instead of 1 x 1 x 1 mm"
    assert "axes RAI instead of RAS" in describe_mismatch(flipped, thin)


@pytest.mark.parametrize("affine", [AFFINE, AFFINE + 1e-6, shifted(0.05), shifted(0.0999), AFFINE.astype(np.float32)])
def test_grids_within_a_tenth_of_a_mm_are_the_same(affine):
    assert describe_mismatch(Grid(SHAPE, affine), Grid(SHAPE, AFFINE)) == ""


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid((240, 240, 26), AFFINE), "shape 240 x 240 x 26 instead of 240 x 240 x 155, centre 64.5 mm away"),
        (Grid(SHAPE, shifted(3)), "centre 3.0 mm away"),
        (Grid(SHAPE, shifted(0.11)), "centre 0.1 mm away"),
        (Grid((1, 1, 1), shifted(0)), "shape 1 x 1 x 1 instead of 240 x 240 x 155, centre 185.7 mm away"),
        (Grid(SHAPE, AFFINE @ np.diag([1, 1, 2, 1])), "spacing 1 x 1 x 2 instead of 1 x 1 x 1 mm, centre 77.0 mm away"),
        (Grid(SHAPE, np.diag([1.0, -1, 1, 1])), "axes RPS instead of LPS, centre 239.0 mm away"),
    ],
)
def test_mismatch_is_described_in_mm(grid, message):
    assert describe_mismatch(grid, Grid(SHAPE, AFFINE)) == message


def test_rotation_too_small_for_any_entry_of_the_affine_is_seen_at_the_corners():
    """A tenth of a degree changes no entry by 0.002, and the far corner by half a millimetre."""
    assert np.abs(rotated(0.1) - AFFINE).max() < 0.002
    assert describe_mismatch(Grid(SHAPE, rotated(0.1)), Grid(SHAPE, AFFINE)).startswith("rotated by 0.1 degrees")
    assert "rotated by 17.0 degrees" in describe_mismatch(Grid(SHAPE, rotated(17)), Grid(SHAPE, AFFINE))


@pytest.mark.parametrize("affine", [rotated(0.04), AFFINE @ np.diag([1.0009, 1.0009, 1, 1])])
def test_small_rotation_and_spacing_about_the_centre_are_described_by_their_corners(affine):
    mismatch = describe_mismatch(Grid(SHAPE, centred(affine)), Grid(SHAPE, centred(AFFINE)))
    assert mismatch in ("corners up to 0.1 mm away", "corners up to 0.2 mm away")


def volume(affine, shape=(512, 4, 4)):
    return GridArray(np.zeros(shape, np.uint8), affine)


def test_other_voxel_size_is_refused_although_no_entry_of_the_affine_differs_by_a_tenth():
    image, label = np.diag([0.70, 0.70, 1, 1]), np.diag([0.78, 0.78, 1, 1])
    assert np.abs(image - label).max() < 0.1
    message = (
        r"^p1: the label does not lie on the grid of the prediction: spacing 0.78 x 0.78 x 1 instead of 0.7 x 0.7 x 1 "
        r"mm, centre 20\.4 mm away\. Resample the label to this grid, or correct its header\.$"
    )
    with pytest.raises(InputError, match=message):
        check_same_grid(volume(image), volume(label), case="p1")


def test_volume_shifted_by_less_than_a_tenth_of_a_mm_is_accepted():
    shift = np.eye(4)
    shift[:3, 3] = 0.05, 0, 0
    check_same_grid(volume(np.eye(4)), volume(shift), case="p1")


def test_compared_volume_is_named():
    with pytest.raises(InputError, match=r"^p1: the image does not lie on the grid .* Resample the image to"):
        check_same_grid(volume(np.eye(4)), volume(np.eye(4), (512, 4, 5)), case="p1", name="image")


def test_every_axis_order_and_flip_differs_from_the_others():
    """Of a cube, so that the shapes say nothing."""
    orders = nib.orientations
    grids = []
    for axcodes in ("RAS", "LAS", "RPS", "RAI", "ARS", "SAR", "SRA", "ASR", "RSA"):
        transform = orders.ornt_transform(orders.axcodes2ornt("RAS"), orders.axcodes2ornt(axcodes))
        grids.append(Grid((9, 9, 9), AFFINE @ orders.inv_ornt_aff(transform, (9, 9, 9))))
    for index, grid in enumerate(grids):
        assert [describe_mismatch(grid, other) == "" for other in grids] == [n == index for n in range(len(grids))]
