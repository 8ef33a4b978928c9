import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data.inputs import list_cases
from tests.conftest import ROOT, SHARED_DATA


def write_volume(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.rand(4, 4, 4).astype(np.float32), np.eye(4)), path)
    return path


def names(source):
    return [(case["case"], case["image"]) for case in list_cases(source)]


def test_file_is_one_case(tmp_path):
    path = write_volume(tmp_path / "liver.v2.nii.gz")
    assert names(path) == [("liver.v2", str(path))]


def test_folder_gives_its_volumes_in_order_of_name(tmp_path):
    for name in ("b.nii.gz", "a.nii", "notes.txt", ".hidden.nii.gz"):
        write_volume(tmp_path / name) if "nii" in name else (tmp_path / name).write_text("x")
    assert [name for name, _ in names(tmp_path)] == ["a", "b"]


def test_same_stem_twice_gives_two_names(tmp_path):
    write_volume(tmp_path / "a.nii")
    write_volume(tmp_path / "a.nii.gz")
    assert [name for name, _ in names(tmp_path)] == ["a", "a_2"]


def test_datalist_gives_its_test_cases_with_their_labels(tmp_path):
    for name in ("x/ct.nii.gz", "y/ct.nii.gz", "y/label.nii.gz"):
        write_volume(tmp_path / name)
    content = {"test": ["x/ct.nii.gz", {"image": "y/ct.nii.gz", "label": "y/label.nii.gz"}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    cases = list_cases(tmp_path / "list.json")
    assert [case["case"] for case in cases] == ["x_ct", "y_ct"]
    assert cases[1]["label"].endswith("y/label.nii.gz")


def test_another_section_of_a_datalist_is_listed_without_checking_its_files(tmp_path):
    content = {"training": [{"image": "a.nii", "label": "a_label.nii"}], "test": ["b.nii"]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    (case,) = list_cases(tmp_path / "list.json", split="training")
    assert case == {"image": str(tmp_path / "a.nii"), "label": str(tmp_path / "a_label.nii"), "case": "a"}


def test_empty_section_of_a_datalist_is_refused(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"training": []}))
    with pytest.raises(InputError, match=r"list\.json: no test cases"):
        list_cases(tmp_path / "list.json")


def test_dicom_folder_is_one_case_and_so_is_one_of_its_slices(series):
    assert names(series) == [("series", str(series))]
    assert names(next(series.iterdir())) == [("series", str(series))]


def test_folder_of_dicom_series_gives_each(series):
    shutil.copytree(series, series.parent / "another")
    assert [name for name, _ in names(series.parent)] == ["another", "series"]


def test_cases_may_be_found_by_another_function(tmp_path):
    def find(path):
        return [{"image": [str(path / "x" / name), str(path / "y")], "case": str(path / "x" / name)} for name in "ab"]

    cases = list_cases(tmp_path, images_per_case=2, find=find)
    assert [case["case"] for case in cases] == ["a", "b"]
    assert cases[1]["image"] == [str(tmp_path / "x" / "b"), str(tmp_path / "y")]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "x.txt").write_text("text")])
def test_folder_without_volumes_is_refused(tmp_path, make):
    make(tmp_path)
    with pytest.raises(InputError, match=r"holds neither NIfTI \(.nii, .nii.gz\) nor DICOM"):
        list_cases(tmp_path)


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"x\.png: holds neither NIfTI"):
        list_cases(tmp_path / "x.png")


def test_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none: no such file or folder; give a NIfTI file, a folder or a datalist\.$"):
        list_cases(tmp_path / "none")


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("ct_torso", ["image", "label_btcv13", "label_totalsegmentator"]),
        ("mr_torso", ["image", "label_totalsegmentator_mr"]),
        ("ct_dicom", ["ct_dicom"]),
    ],
)
def test_cases_of_real_data_are_listed(folder, expected):
    source = SHARED_DATA / folder
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    assert [name for name, _ in names(source)] == expected


def test_importing_costs_no_more_than_nibabel():
    """So that a process of a cohort starts in half a second; nibabel imports pydicom and SciPy by itself."""
    code = """
import sys, nibabel, tqdm
before = set(sys.modules)
import scripts.data.inputs
heavy = ("torch", "monai", "ignite", "pandas", "matplotlib", "numba")
print([name for name in heavy if name in sys.modules])
print([name for name in ("pydicom", "scipy") if name in sys.modules and name not in before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n[]\n"
