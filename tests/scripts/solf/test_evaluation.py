import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.solf.evaluation import label_dice, paired_cases
from tests.scripts.solf.conftest import small_map


def test_dice_of_each_label_counts_voxels():
    one, other = np.array([1, 1, 1, 2, 0, 7], np.uint8), np.array([1, 1, 2, 2, 5, 0], np.uint8)
    assert label_dice(one, other) == pytest.approx({1: 4 / 5, 2: 2 / 3, 5: 0, 7: 0})


def test_manual_labels_are_found_by_name(label_file, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "manual").mkdir()
    for name in ("raw/a.nii.gz", "raw/b.nii.gz", "manual/b.nii.gz"):
        label_file(small_map(0), name)
    paired = paired_cases(tmp_path / "raw", tmp_path / "manual")
    assert [(case["case"], case["label"]) for case in paired] == [("b", str(tmp_path / "manual/b.nii.gz"))]
    assert [case["case"] for case in paired_cases(tmp_path / "raw")] == ["a", "b"]


def test_label_map_without_a_manual_one_is_warned_of_and_two_of_one_name_are_refused(label_file, tmp_path, caplog):
    for name in ("raw/a.nii.gz", "raw/b.nii.gz", "manual/b.nii.gz", "manual/b.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        label_file(small_map(0), name)
    with pytest.raises(InputError, match=r"manual: .*b\.nii.* and .*b\.nii.* have the same name; keep one of them\."):
        paired_cases(tmp_path / "raw", tmp_path / "manual")
    (tmp_path / "manual" / "b.nii").unlink()
    assert len(paired_cases(tmp_path / "raw", tmp_path / "manual")) == 1
    assert "left out 1 label maps that have none there" in caplog.text


def test_manual_labels_of_other_names_are_refused(label_file, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "manual").mkdir()
    label_file(small_map(0), "raw/a.nii.gz")
    label_file(small_map(0), "manual/c.nii.gz")
    with pytest.raises(InputError, match="has no label map with the name of one in"):
        paired_cases(tmp_path / "raw", tmp_path / "manual")
