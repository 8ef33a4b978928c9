import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.nn.functional import interpolate

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.segvol.frames import Placed, box_of, place, reflected, zoomed_out
from scripts.segvol.prompt_files import Prompt
from scripts.segvol.transforms import OrientSlicesFirstd

SHAPE = (10, 12, 14)
OBLIQUE = nib.affines.from_matvec(np.array([[-2.0, 0.2, 0], [0.2, -1.5, 0], [0, 0, 3]]), [30, 20, -10])


def grids(affine):
    """Grids of a file and of the same turned to slices, rows and columns."""
    turned = OrientSlicesFirstd("image")({"image": MetaTensor(torch.zeros(1, *SHAPE), affine=torch.from_numpy(affine))})
    working = Grid(tuple(turned["image"].shape[1:]), turned["image"].affine.numpy())
    return Grid(SHAPE, affine), working


def marked(affine, voxels):
    """Return where some voxels of a file lie after MONAI turned it."""
    volume = torch.zeros(1, *SHAPE)
    volume[0][tuple(np.array(voxels).T)] = 1
    turned = OrientSlicesFirstd("image")({"image": MetaTensor(volume, affine=torch.from_numpy(affine))})["image"]
    return turned[0].nonzero().tolist()


@pytest.mark.parametrize(
    "affine", [np.diag([1.0, 1, 1, 1]), np.diag([-1.0, -2, 3, 1]), OBLIQUE], ids=["RAS", "LPS", "oblique"]
)
def test_voxels_of_the_file_are_found_in_the_turned_volume(affine):
    file, working = grids(affine)
    at = place(Prompt(points=((1, 2, 3),), negative=((9, 0, 13),), box=(1, 2, 3, 4, 6, 8)), file=file, working=working)
    assert [at.points[0].tolist()] == marked(affine, [(1, 2, 3)])
    assert [at.points[1].tolist()] == marked(affine, [(9, 0, 13)])
    assert at.labels.tolist() == [1, 0]
    corners = np.array(marked(affine, [(1, 2, 3), (4, 6, 8)]))
    assert at.box.tolist() == [*corners.min(axis=0), *corners.max(axis=0)]


@pytest.mark.parametrize("space", ["RAS", "LPS"])
@pytest.mark.parametrize("affine", [np.diag([-1.0, -2, 3, 1]), OBLIQUE], ids=["LPS", "oblique"])
def test_mm_mean_the_same_place_as_voxels(affine, space):
    file, working = grids(affine)
    mm = nib.affines.apply_affine(affine, (3, 4, 5)) * ([1, 1, 1] if space == "RAS" else [-1, -1, 1])
    one = place(Prompt(points=(tuple(mm),), space=space), file=file, working=working)
    other = place(Prompt(points=((3, 4, 5),)), file=file, working=working)
    assert one.points.tolist() == other.points.tolist()


def test_box_in_mm_holds_the_voxels_of_its_corners():
    file, working = grids(np.diag([-1.0, -2, 3, 1]))
    at = place(Prompt(box=(-8, -12, 6, -2, -4, 15), space="RAS"), file=file, working=working)
    same = place(Prompt(box=(2, 2, 2, 8, 6, 5)), file=file, working=working)
    assert at.box.tolist() == same.box.tolist()


def test_box_that_reaches_beyond_the_image_is_clipped():
    file, working = grids(np.eye(4))
    at = place(Prompt(box=(-5, 2, 3, 40, 6, 8)), file=file, working=working)
    assert at.box.tolist() == [3, 2, 0, 8, 6, 9]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            Prompt("cyst", points=((1, 2, 14),)),
            r"cyst: the point \(1, 2, 14\) lies outside of the image, of 10 x 12 x 14",
        ),
        (Prompt("cyst", points=((99, 2, 4),), space="RAS"), r"in mm RAS is voxel \(99, 2, 4\), which lies outside"),
        (Prompt("cyst", box=(10, 2, 4, 12, 5, 5)), r"cyst: the box \(10, 2, 4, 12, 5, 5\) lies outside"),
    ],
)
def test_prompt_outside_of_the_image_is_refused(prompt, message):
    file, working = grids(np.eye(4))
    with pytest.raises(InputError, match=message):
        place(prompt, file=file, working=working)


def test_prompt_in_the_air_that_was_cut_off_is_refused():
    file = Grid(SHAPE, np.eye(4))
    working = Grid((5, 5, 5), nib.affines.from_matvec(np.eye(3)[::-1], [2, 2, 2]))
    with pytest.raises(InputError, match="cyst: all its points lie on air"):
        place(Prompt("cyst", points=((0, 0, 0),)), file=file, working=working)
    with pytest.raises(InputError, match="cyst: its box holds only air"):
        place(Prompt("cyst", box=(0, 0, 0, 1, 5, 5)), file=file, working=working)
    at = place(Prompt("cyst", points=((0, 0, 0), (3, 4, 5))), file=file, working=working)
    assert at.points.tolist() == [[3, 2, 1]]


def cube(around, shape):
    volume = torch.zeros(shape)
    volume[tuple(slice(a, b + 1) for a, b in zip(around[:3], around[3:], strict=True))] = 1
    return volume


@pytest.mark.parametrize("shape", [(20, 100, 120), (40, 30, 70), (8, 16, 16)])
def test_zoomed_out_box_is_that_of_the_resized_cube(shape):
    size, rng = (8, 16, 16), np.random.default_rng(0)
    for _ in range(30):
        low = rng.integers(0, np.array(shape) // 2)
        around = np.concatenate([low, rng.integers(low, shape)])
        small = zoomed_out(Placed(np.zeros((0, 3)), np.zeros(0), around), shape, size).box
        expected = box_of(interpolate(cube(around, shape)[None, None], size=size, mode="nearest-exact")[0, 0] > 0)
        assert (small[:3] <= small[3:]).all()
        if expected is not None:  # a thin box may be lost
            assert small.tolist() == expected.tolist()
            back = box_of(interpolate(cube(small, size)[None, None], size=shape, mode="nearest")[0, 0] > 0)
            assert reflected(small, size, shape).tolist() == back.tolist()


def test_thin_box_is_not_lost_when_zoomed_out():
    at = zoomed_out(Placed(np.zeros((0, 3)), np.zeros(0), np.array([7, 0, 0, 7, 99, 119])), (20, 100, 120), (2, 16, 16))
    assert at.box.tolist() == [0, 0, 0, 0, 15, 15]


def test_points_go_to_the_voxel_that_shows_them():
    at = zoomed_out(Placed(np.array([[0, 0, 0], [19, 99, 119]]), np.ones(2), None), (20, 100, 120), (8, 16, 16))
    assert at.points.tolist() == [[0, 0, 0], [7, 15, 15]]


def test_points_outside_of_a_window_are_left_out_and_boxes_clipped():
    at = Placed(np.array([[5, 5, 5], [9, 9, 9]]), np.array([1, 0]), np.array([2, 2, 2, 9, 9, 9]))
    inner = at.moved((4, 4, 4)).within((4, 4, 4))
    assert inner.points.tolist() == [[1, 1, 1]]
    assert inner.labels.tolist() == [1]
    assert inner.box.tolist() == [0, 0, 0, 3, 3, 3]
    assert at.moved((20, 20, 20)).within((4, 4, 4)).box is None


def test_box_of_an_empty_mask_is_none():
    assert box_of(torch.zeros(2, 3, 4)) is None
    assert box_of(cube((0, 1, 2, 1, 1, 3), (2, 3, 4)) > 0).tolist() == [0, 1, 2, 1, 1, 3]
