import gzip
import re

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.io.nifti import StoredVolume, check_geometry, check_intensities, read_nifti
from tests.scripts.io.volume_files import BAD_FILES, OBLIQUE, SHAPE, truncate, write_array, write_image


def refused(path):
    with pytest.raises(InputError) as error:
        read_nifti(path)
    return str(error.value)


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_file_is_refused_with_its_path(tmp_path, message):
    path = write_image(tmp_path / "ct.nii.gz")
    BAD_FILES[message](path)
    assert refused(path).startswith(f"{path}: {message}")
    assert refused(str(path)).startswith(f"{path}: {message}")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "NII.GZ"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_and_affine_equal_those_of_nibabel(tmp_path, suffix, dtype, image_class):
    array = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    path = tmp_path / f"ct.{suffix}"
    nib.save(image_class(array, OBLIQUE), path)
    volume, expected = read_nifti(path), nib.load(path)
    np.testing.assert_array_equal(volume.values(), expected.get_fdata())
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert volume.values().dtype == np.float32
    assert volume.values().flags.c_contiguous
    assert volume.grid.shape == SHAPE


@pytest.mark.parametrize(("slope", "inter"), [(0.5, 1.0), (1.0, -1024.0), (-2.0, 0.0), (1e-3, 0.0)])
def test_scaled_values_equal_those_of_nibabel(tmp_path, slope, inter):
    stored = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(stored * slope + inter, OBLIQUE)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, tmp_path / "ct.nii.gz")
    volume = read_nifti(tmp_path / "ct.nii.gz")
    assert volume.stored.dtype == np.int16
    expected = nib.load(tmp_path / "ct.nii.gz").get_fdata()
    np.testing.assert_allclose(volume.values(), expected, rtol=1e-6)
    np.testing.assert_allclose(volume.value_range, (expected.min(), expected.max()))


def test_truncated_uncompressed_file_is_refused(tmp_path):
    path = write_image(tmp_path / "ct.nii")
    truncate(path, -30)
    assert refused(path).startswith(f"{path}: cannot be read whole (Expected 420 bytes, got 390 bytes")


@pytest.mark.parametrize("sizes", [(32767, 32767, 32767), (-5, 6, 7), (0, 6, 7)])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_header_with_impossible_sizes_is_refused(tmp_path, sizes, suffix):
    data = bytearray(write_image(tmp_path / "a.nii").read_bytes())
    data[42:48] = np.array(sizes, "<i2").tobytes()
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == "nii.gz" else data)
    assert re.match(rf"{path}: (cannot be read whole|has shape)", refused(path))


def test_folder_is_refused(tmp_path):
    assert refused(tmp_path).startswith(f"{tmp_path}: cannot be read whole ([Errno 21] Is a directory")


def test_volume_of_one_slice_keeps_three_axes(tmp_path):
    path = write_array(tmp_path / "slice.nii.gz", np.arange(12, dtype=np.float32).reshape(3, 4, 1))
    assert read_nifti(path).values().shape == (3, 4, 1)


def test_values_may_be_written_to(tmp_path):
    """A volume that is C- and Fortran-contiguous at once is not copied."""
    volume = read_nifti(write_array(tmp_path / "line.nii", np.arange(5, dtype=np.float32).reshape(5, 1, 1)))
    assert volume.values().flags.writeable


@pytest.mark.parametrize("mm", [0.01, 50.0])
def test_spacing_at_the_limits_is_accepted(mm):
    check_geometry(Grid((2, 2, 2), np.diag([mm, 1, 1, 1])), "ct.nii")


def test_sheared_affine_is_accepted():
    """A tilted gantry shears the volume; up to 30 degrees are common."""
    sheared = np.eye(4)
    sheared[1, 2] = np.tan(np.deg2rad(30))
    check_geometry(Grid((2, 2, 2), sheared), "ct.nii")


def test_translation_that_is_not_finite_is_not_blamed_on_the_spacing():
    affine = np.eye(4)
    affine[0, 3] = np.inf
    with pytest.raises(InputError, match=r"^ct\.nii: its affine holds NaN or infinity; correct the header\.$"):
        check_geometry(Grid((2, 2, 2), affine), "ct.nii")


def test_constant_image_is_refused_with_its_scaled_value():
    volume = StoredVolume(np.full((2, 2, 2), 3, np.int16), np.eye(4), slope=2.0, inter=-1024.0)
    with pytest.raises(InputError, match=r"^ct\.nii: is constant, every voxel is -1018; this is not an image\.$"):
        check_intensities(volume, "ct.nii")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (-2.0, 5.0)])
def test_voxel_that_is_not_finite_is_found(value, slope, inter):
    stored = np.zeros((3, 3, 3), np.float32)
    stored[1, 2, 0], stored[0, 0, 0] = value, 7
    with pytest.raises(InputError, match=r"^ct\.nii: holds NaN or infinite voxels; export it again or replace them\.$"):
        check_intensities(StoredVolume(stored, np.eye(4), slope, inter), "ct.nii")
