import re
import shutil

import pydicom
import pytest

from scripts.common.errors import InputError
from scripts.io.dicom import check_dicom_series, read_dicom_series


def edit(path, **values):
    """Set elements of a file; None deletes one."""
    header = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(header, name, value) if value is not None else delattr(header, name)
    header.save_as(path)


def test_complete_series_is_read(series):
    check_dicom_series(series)
    volume = read_dicom_series(series)
    assert volume.stored.shape == (512, 512, 20)
    assert abs(volume.affine[2, 2]) == pytest.approx(2.0)
    assert volume.value_range[0] >= -1024


def test_other_files_beside_the_slices_are_ignored(series):
    (series / "notes.txt").write_text("text")
    assert read_dicom_series(series).stored.shape == (512, 512, 20)


def test_missing_slice_is_refused_with_its_position(series):
    sorted(series.iterdir())[7].unlink()
    with pytest.raises(InputError, match=r"slices are 4.00 mm apart at .* mm, elsewhere 2.00 mm: slices are missing"):
        check_dicom_series(series)


def test_duplicated_slice_is_refused(series):
    first = sorted(series.iterdir())[0]
    shutil.copy(first, series / "again.dcm")
    with pytest.raises(InputError, match=r"slices are 0.00 mm apart"):
        check_dicom_series(series)


def test_two_series_in_one_folder_are_refused(series):
    edit(sorted(series.iterdir())[0], SeriesInstanceUID="1.2.3")
    message = r"holds 2 DICOM series: .* \(19 files\), 1.2.3 \(1 files\); put each into its own folder"
    with pytest.raises(InputError, match=message):
        check_dicom_series(series)


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_slices_without_geometry_are_refused(series, tag):
    for path in series.iterdir():
        edit(path, **{tag: None})
    with pytest.raises(InputError, match=rf"series: slices without {tag}; give a CT or MR series\.$"):
        read_dicom_series(series)


def test_truncated_pixels_are_refused_with_the_folder(series):
    path = sorted(series.iterdir())[3]
    edit(path, PixelData=pydicom.dcmread(path).PixelData[:1000])
    with pytest.raises(InputError, match=rf"^{re.escape(str(series))}: cannot be read as a DICOM series \("):
        read_dicom_series(series)


@pytest.mark.parametrize("name", [None, "notes.txt"])
def test_folder_without_dicom_is_refused(tmp_path, name):
    if name:
        (tmp_path / name).write_text("text")
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}: holds no DICOM files; give the folder of a"):
        read_dicom_series(tmp_path)
