import json
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest

from scripts.inputs import check_dicom_series, list_cases
from tests.conftest import SHARED_DATA


def volume(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.rand(4, 4, 4).astype(np.float32), np.eye(4)), path)
    return path


@pytest.fixture
def series(tmp_path):
    source = SHARED_DATA / "ct_dicom"
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    shutil.copytree(source, tmp_path / "series")
    for file in (tmp_path / "series").iterdir():
        file.chmod(0o644)
    (tmp_path / "series").chmod(0o755)
    return tmp_path / "series"


def names(source):
    return [(case["case"], case["image"]) for case in list_cases(source)]


def test_file_is_one_case(tmp_path):
    path = volume(tmp_path / "liver.v2.nii.gz")
    assert names(path) == [("liver.v2", str(path))]


def test_folder_gives_its_volumes_in_order_of_name(tmp_path):
    for name in ("b.nii.gz", "a.nii", "notes.txt", ".hidden.nii.gz"):
        volume(tmp_path / name) if "nii" in name else (tmp_path / name).write_text("x")
    assert [name for name, _ in names(tmp_path)] == ["a", "b"]


def test_same_stem_twice_gives_two_names(tmp_path):
    volume(tmp_path / "a.nii")
    volume(tmp_path / "a.nii.gz")
    assert [name for name, _ in names(tmp_path)] == ["a", "a_2"]


def test_datalist_gives_its_test_cases_with_labels(tmp_path):
    for name in ("x/ct.nii.gz", "y/ct.nii.gz", "y/label.nii.gz"):
        volume(tmp_path / name)
    content = {"test": ["x/ct.nii.gz", {"image": "y/ct.nii.gz", "label": "y/label.nii.gz"}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    cases = list_cases(tmp_path / "list.json")
    assert [case["case"] for case in cases] == ["x_ct", "y_ct"]
    assert cases[1]["label"].endswith("y/label.nii.gz")


def test_dicom_folder_is_one_case_and_a_slice_stands_for_its_series(series):
    assert names(series) == [("series", str(series))]
    assert names(next(series.iterdir())) == [("series", str(series))]


def test_folder_of_dicom_series_gives_each(series):
    shutil.copytree(series, series.parent / "another")
    assert [name for name, _ in names(series.parent)] == ["another", "series"]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "x.txt").write_text("text")])
def test_folder_without_volumes_is_refused(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ValueError, match=r"holds neither NIfTI \(.nii, .nii.gz\) nor DICOM"):
        list_cases(tmp_path)


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"x.png: holds neither NIfTI"):
        list_cases(tmp_path / "x.png")


def test_whole_series_passes(series):
    check_dicom_series(series)


def test_missing_slice_is_named(series):
    sorted(series.iterdir())[7].unlink()
    with pytest.raises(ValueError, match=r"slices are 4.00 mm apart at .* mm, elsewhere 2.00 mm: slices are missing"):
        check_dicom_series(series)


def test_doubled_slice_is_named(series):
    first = sorted(series.iterdir())[0]
    shutil.copy(first, series / "again.dcm")
    with pytest.raises(ValueError, match=r"slices are 0.00 mm apart"):
        check_dicom_series(series)


def test_two_series_in_one_folder_are_named(series):
    path = sorted(series.iterdir())[0]
    slice_ = pydicom.dcmread(path)
    slice_.SeriesInstanceUID = "1.2.3"
    slice_.save_as(path)
    with pytest.raises(ValueError, match=r"holds 2 DICOM series: .* \(19 files\), 1.2.3 \(1 files\)"):
        check_dicom_series(series)
