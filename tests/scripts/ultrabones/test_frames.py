import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.common.grids import GridArray
from scripts.io.pictures import PICTURE_AFFINE
from scripts.ultrabones.frames import frames_of, pixel_size_mm


def test_frames_of_a_picture_are_its_rows_and_columns():
    stored = np.arange(24).reshape(6, 4)  # as shown: 6 rows, 4 columns
    assert np.array_equal(frames_of(GridArray(stored.T[..., None], PICTURE_AFFINE)), stored[None])


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SPL", "AIR"])
def test_frames_do_not_depend_on_the_order_of_the_axes(axes):
    volume = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), PICTURE_AFFINE @ np.diag([0.2, 0.3, 1, 1]))
    change = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axes))
    turned = volume.as_reoriented(change)
    given = GridArray(np.asarray(turned.dataobj), turned.affine)
    assert np.array_equal(frames_of(given), np.moveaxis(np.asarray(volume.dataobj), -1, 0).swapaxes(1, 2))
    assert pixel_size_mm(given, None, source="a.nii.gz") == pytest.approx((0.3, 0.2))


def test_size_that_is_given_wins_and_pictures_tell_none():
    volume = GridArray(np.zeros((2, 2, 1)), PICTURE_AFFINE)
    assert pixel_size_mm(volume, [0.1, 0.2], source="a.png") == (0.1, 0.2)
    assert pixel_size_mm(volume, None, source="a.png") is None


@pytest.mark.parametrize("given", [[0, 1], [1], [float("nan"), 1]])
def test_impossible_size_is_refused(given):
    with pytest.raises(InputError, match="give height and width of a pixel, above 0 mm"):
        pixel_size_mm(GridArray(np.zeros((2, 2, 1)), PICTURE_AFFINE), given, source="a.png")
