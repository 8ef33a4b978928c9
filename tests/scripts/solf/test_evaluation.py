import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.solf.evaluation import FilterScores, label_dice, paired_cases
from scripts.solf.filter import LabelFilter
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


def test_folders_of_masks_are_paired_by_the_names_of_people(label_file, json_file, tmp_path):
    """TotalSegmentator names every folder of masks alike, `segmentations`; the other map may be one file."""
    masks = [f"raw/p{n}/segmentations/{organ}.nii.gz" for n in (1, 2) for organ in ("lesion_a", "lesion_b")]
    for name in (*masks, "other/p2.nii.gz", "other/p1.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        label_file(small_map(0), name)
    table = json_file({"1": "lesion_a", "2": "lesion_b"})
    paired = paired_cases(tmp_path / "raw", tmp_path / "other", label_table=table)
    assert [(case["case"], case["image"], case["label"]) for case in paired] == [
        (f"p{n}", str(tmp_path / "raw" / f"p{n}" / "segmentations"), str(tmp_path / "other" / f"p{n}.nii.gz"))
        for n in (1, 2)
    ]
    with pytest.raises(InputError, match="has no label map with the name of one in"):
        paired_cases(tmp_path / "raw", tmp_path / "other")  # masks of no known organ are files of their own


def test_dice_of_labels_to_65535():
    one, other = np.array([65535, 0, 300], np.uint16), np.array([65535, 65535, 1], np.uint16)
    assert label_dice(one, other) == pytest.approx({1: 0, 300: 0, 65535: 2 / 3})


def test_tables_of_cases_are_refused_where_only_aggregates_may_leave(tmp_path):
    with pytest.raises(InputError, match="aggregate_only is true, but evaluation writes a row per case"):
        FilterScores(tmp_path, LabelFilter(), aggregate_only="true")
