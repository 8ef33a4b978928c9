import re
from functools import partial

import nibabel as nib
import numpy as np
import pytest

from scripts.brats.inputs import check_image, find_sequences
from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.data.case_checks import check_cases
from scripts.data.inputs import list_cases
from tests.scripts.brats.sequence_files import FINER, OBLIQUE, OTHER_GRIDS, SEQUENCES, SHAPE, write_case

list_sequences = partial(list_cases, images_per_case=4, find=find_sequences)


# find_sequences


def test_folder_of_a_case_and_folder_of_cases(tmp_path):
    paths = write_case(tmp_path / "x" / "p1")
    write_case(tmp_path / "y" / "p1")
    (tmp_path / "y" / "p1" / "p1-seg.nii.gz").touch()
    assert list_sequences(tmp_path / "x" / "p1") == [{"image": paths, "case": "p1"}]
    both = list_sequences(tmp_path)
    assert [case["case"] for case in both] == ["x_p1_p1", "y_p1_p1"]
    assert both[1]["label"] == str(tmp_path / "y" / "p1" / "p1-seg.nii.gz")


@pytest.mark.parametrize("sequence", range(4))
def test_path_of_one_sequence_finds_the_others_of_its_case_alone(tmp_path, sequence):
    paths = write_case(tmp_path)
    write_case(tmp_path, names={kind: f"p2-{kind}.nii.gz" for kind in SEQUENCES})
    write_case(tmp_path / "deeper")
    (tmp_path / "p1-seg.nii").touch()
    expected = [{"image": paths, "case": "p1", "label": str(tmp_path / "p1-seg.nii")}]
    assert list_sequences(paths[sequence]) == expected


def test_relative_path_of_one_sequence(tmp_path, monkeypatch):
    write_case(tmp_path)
    monkeypatch.chdir(tmp_path)
    (case,) = list_sequences("p1-t2f.nii.gz")
    assert case == {"image": [f"p1-{kind}.nii.gz" for kind in SEQUENCES], "case": "p1"}


def test_of_two_labels_none_is_taken(tmp_path, caplog):
    write_case(tmp_path)
    for name in ("p1-seg.nii.gz", "p1_seg.nii"):
        (tmp_path / name).touch()
    (case,) = list_sequences(tmp_path)
    assert "label" not in case
    assert "p1: 2 files for seg (p1-seg.nii.gz, p1_seg.nii): none is used; keep one" in caplog.messages


def test_incomplete_case_is_listed_and_fails_when_it_is_loaded(tmp_path):
    paths = write_case(tmp_path)
    (tmp_path / "p1-t1c.nii.gz").unlink()
    assert list_sequences(tmp_path) == [{"image": [paths[0], *paths[2:]], "case": "p1"}]


@pytest.mark.parametrize("name", ["scan.nii.gz", "p1-seg.nii.gz", "notes.txt", "empty folder"])
def test_input_without_sequences_is_refused(tmp_path, name):
    write_case(tmp_path)
    path = tmp_path / name
    if name == "empty folder":
        path.mkdir()
    else:
        path.touch()
    message = f"{path}: no sequences found; give the folder of <case>-t1n.nii.gz, -t1c, -t2w, -t2f (or _t1, _t1ce, _t2"
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        list_sequences(path)


# check_image

PATHS = [f"p1-{kind}.nii.gz" for kind in SEQUENCES]
REFERENCE, OTHER = Grid(SHAPE, OBLIQUE), Grid((30, 28, 26), FINER)
MIXED = [OTHER, REFERENCE, OTHER, REFERENCE]


def test_four_sequences_on_one_grid_have_no_problem():
    problems, grid = check_image(PATHS, [REFERENCE] * 4)
    assert problems == []
    assert grid is REFERENCE


@pytest.mark.parametrize("resample", [False, "false", "False"])
def test_mixed_grids_are_one_problem_unless_resampled(resample):
    (problem,), grid = check_image(PATHS, MIXED, resample=resample)
    assert problem.startswith("p1-t1c.nii.gz: not all sequences lie on its grid: t1n has shape 30 x 28 x 26 instead")
    assert "; t2w has shape 30 x 28 x 26" in problem
    assert grid is REFERENCE


@pytest.mark.parametrize("resample", [True, "true", "True"])
def test_label_must_lie_on_the_grid_of_t1c_if_sequences_are_resampled(resample):
    problems, grid = check_image(PATHS, MIXED, resample=resample)
    assert problems == []
    assert grid is REFERENCE


def test_sequences_of_other_regions_are_a_problem_also_if_resampled():
    away = Grid(SHAPE, OBLIQUE + np.eye(4, k=3) * 1000)
    (problem,), grid = check_image(PATHS, [REFERENCE, REFERENCE, REFERENCE, away], resample=True)
    assert problem.startswith("p1-t1c.nii.gz: not all sequences show the region that it shows: t2f shares 0%")
    assert grid is REFERENCE


def test_missing_sequence_is_the_problem_whatever_the_grids():
    problems, grid = check_image(PATHS[:3], MIXED[:3])
    assert problems == [".: t2f missing beside p1-t1n.nii.gz: give t1n, t1c, t2w, t2f."]
    assert grid is None


def test_grids_are_not_compared_if_a_file_is_unreadable():
    assert check_image(PATHS, [OTHER, REFERENCE, None, REFERENCE]) == ([], REFERENCE)
    assert check_image(PATHS, [OTHER, None, OTHER, REFERENCE]) == ([], None)


def test_resample_is_a_flag():
    with pytest.raises(InputError, match="resample is 'perhaps': give true or false"):
        check_image(PATHS, MIXED, resample="perhaps")


def test_check_of_cases_names_sequences_and_label_on_other_grids(tmp_path):
    paths = write_case(tmp_path, grids=OTHER_GRIDS)
    label = tmp_path / "p1-seg.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((30, 28, 26), np.uint8), FINER), label)
    items = [{"image": paths, "label": str(label)}]
    with pytest.raises(InputError, match="check of 1 cases: 2 problems") as caught:
        check_cases(items, num_classes=4, check_image=check_image)
    assert "not all sequences lie on its grid: t2w has shape" in str(caught.value)
    with pytest.raises(InputError, match="check of 1 cases: 1 problem; ") as caught:
        check_cases(items, num_classes=4, check_image=partial(check_image, resample="true"))
    assert "p1-seg.nii.gz: does not lie on the grid of its image: shape 30 x 28 x 26" in str(caught.value)
