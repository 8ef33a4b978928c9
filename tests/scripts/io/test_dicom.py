import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from scripts.common.errors import InputError
from scripts.io import memory
from scripts.io.dicom import check_dicom_series, read_dicom_series
from tests.scripts.io.dicom_files import BAD_SERIES, SHAPE, SPACING_MM, edit, editing, write_series


def refused(folder):
    with pytest.raises(InputError) as error:
        read_dicom_series(folder)
    return str(error.value)


def read_with_sitk(folder):
    """Return voxels and affine in RAS as SimpleITK reads them."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine


def assert_same_as_sitk(folder):
    volume, (voxels, affine) = read_dicom_series(folder), read_with_sitk(folder)
    np.testing.assert_array_equal(volume.values(), voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    assert volume.values().dtype == np.float32


def test_real_series_is_read_as_by_simpleitk(series):
    assert_same_as_sitk(series)
    volume = read_dicom_series(series)
    assert volume.stored.shape == (512, 512, 20)
    assert volume.value_range[0] >= -1024


def test_oblique_series_is_read_as_by_simpleitk(tmp_path):
    folder = write_series(tmp_path / "ct")
    assert_same_as_sitk(folder)
    volume = read_dicom_series(folder)
    assert volume.stored.shape == SHAPE
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), SPACING_MM)


@pytest.mark.parametrize("number", [None, 1, lambda index: 7 * index % 6])
def test_slices_are_ordered_by_position_not_by_number(tmp_path, number):
    """`monai.data.PydicomReader` 1.6.1 shuffles such slices, or leaves them out."""
    expected = read_dicom_series(write_series(tmp_path / "sound"))
    folder = write_series(tmp_path / "ct")
    for index, path in enumerate(sorted(folder.iterdir())):
        edit(path, InstanceNumber=number(index) if callable(number) else number)
    volume = read_dicom_series(folder)
    np.testing.assert_array_equal(volume.stored, expected.stored)
    np.testing.assert_array_equal(volume.affine, expected.affine)


def test_each_slice_has_its_own_scaling(tmp_path):
    """As in PET."""
    folder = write_series(tmp_path / "ct")
    before = read_dicom_series(folder).stored
    editing(2, RescaleSlope=3, RescaleIntercept=-72)(folder)
    after = read_dicom_series(folder).stored
    scaled = (after / before == 3).all(axis=(0, 1))
    assert scaled.tolist() == [False, False, False, True, False, False]
    np.testing.assert_array_equal(after[..., ~scaled], before[..., ~scaled])


def test_mr_series_needs_no_scaling(tmp_path):
    folder = write_series(tmp_path / "mr", Modality="MR")
    editing(None, RescaleSlope=None, RescaleIntercept=None)(folder)
    assert read_dicom_series(folder).stored.shape == SHAPE


def test_gantry_tilt_shears_the_volume(tmp_path):
    folder = write_series(tmp_path / "ct", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    affine = read_dicom_series(folder).affine
    np.testing.assert_allclose(affine[:3, 2], [0, 1.8, 2.4], atol=1e-9)
    np.testing.assert_allclose(affine[:3, 1], [0, -2, 0], atol=1e-9)


def test_single_slice_takes_its_thickness(tmp_path):
    folder = write_series(tmp_path / "ct", n=1, SliceThickness=5)
    volume = read_dicom_series(folder)
    assert volume.stored.shape == (10, 8, 1)
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 3, 4])


@pytest.mark.parametrize("name", ["notes.txt", "README", ".hidden.dcm", "DICOMDIR"])
def test_other_files_beside_the_slices_are_ignored(tmp_path, name):
    folder = write_series(tmp_path / "ct [1]*")
    (folder / name).write_text("text")
    (folder / "subfolder").mkdir()
    assert read_dicom_series(folder).stored.shape == SHAPE


@pytest.mark.parametrize("name", BAD_SERIES)
def test_bad_series_is_refused(tmp_path, name):
    folder = write_series(tmp_path / "bad")
    change, message = BAD_SERIES[name]
    change(folder)
    assert refused(folder).startswith(f"{folder}")
    assert message in refused(folder)
    assert "\n" not in refused(folder)


def test_series_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "ct")
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    assert refused(folder).startswith(f"{folder}: 10 x 8 x 6 voxels need 0.00 GB of memory")


def test_slice_that_vanishes_is_named(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "ct")
    headers = check_dicom_series(folder)
    (folder / "003.dcm").unlink()
    monkeypatch.setattr("scripts.io.dicom.check_dicom_series", lambda _: headers)
    assert refused(folder).startswith(f"{folder}/003.dcm: its pixels cannot be decoded (No such file or directory)")


def test_truncated_jpeg_2000_is_refused(series):
    path = sorted(series.iterdir())[3]
    edit(path, PixelData=pydicom.dcmread(path).PixelData[:1000])
    assert refused(series).startswith(f"{path}: its pixels cannot be decoded (")


def test_compressed_slice_that_is_cut_off_is_refused(series):
    path = sorted(series.iterdir())[3]
    path.write_bytes(path.read_bytes()[:-5000])
    assert refused(series).startswith(f"{path}: ")


def test_folder_of_text_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    assert refused(tmp_path) == f"{tmp_path}: holds no DICOM files; give the folder of a series."


def test_missing_folder_is_refused(tmp_path):
    assert refused(tmp_path / "none").startswith(f"{tmp_path}/none: cannot be read (No such file or directory)")


def test_real_series_with_a_missing_or_doubled_slice_is_refused(series):
    shutil.copy(sorted(series.iterdir())[0], series / "again.dcm")
    assert "are 0.00 mm apart, others 2.00 mm: slices are missing, duplicated or shifted" in refused(series)
    (series / "again.dcm").unlink()
    sorted(series.iterdir())[7].unlink()
    assert "are 4.00 mm apart, others 2.00 mm" in refused(series)
