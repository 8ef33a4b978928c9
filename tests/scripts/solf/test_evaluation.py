import re

import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.solf.evaluation import error_rates, label_dice, paired_cases, read_errors
from tests.scripts.solf.conftest import small_map


def test_dice_of_each_label_counts_voxels():
    one, other = np.array([1, 1, 1, 2, 0, 7], np.uint8), np.array([1, 1, 2, 2, 5, 0], np.uint8)
    assert label_dice(one, other) == pytest.approx({1: 4 / 5, 2: 2 / 3, 5: 0, 7: 0})


def test_error_rates_of_a_table_made_by_hand():
    scores = pd.DataFrame(
        {
            "decision": ["reject", "keep", "reject", "drop", "keep", "reject"],
            "kind": ["half", "half", "leak", np.nan, np.nan, np.nan],
        }
    )
    rates = error_rates(scores).set_index("kind")
    assert rates.loc["half", ["labels", "rejected", "recall"]].tolist() == [2, 1, 0.5]
    assert rates.loc["all", ["labels", "rejected", "false_rejections"]].tolist() == [3, 2, 2]
    assert rates.loc["all", ["precision", "recall", "f1"]].tolist() == pytest.approx([2 / 4, 2 / 3, 4 / 7])


def test_nothing_rejected_has_f1_zero():
    rates = error_rates(pd.DataFrame({"decision": ["keep"], "kind": ["half"]})).set_index("kind")
    assert rates.loc["all", ["precision", "recall", "f1"]].tolist() == [0, 0, 0]


def test_errors_are_listed_by_label_or_organ(tmp_path):
    (tmp_path / "a.csv").write_text("case,organ\n007,kidney_right\n")
    (tmp_path / "b.csv").write_text("case,label,kind\n007,2,half\n007,2,leak\n")
    assert read_errors(tmp_path / "a.csv").to_numpy().tolist() == [["007", 2, "error"]]
    assert read_errors(tmp_path / "b.csv").to_numpy().tolist() == [["007", 2, "half"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label\n2\n", "lacks the columns ['case']; give case, and label or organ."),
        ("case\na\n", "lacks the columns ['label']; give case, and label or organ."),
        ("case,organ\na,nose\n", "['nose'] are not organs; give ids as label"),
        ("", "cannot be read (No columns to parse from file)"),
    ],
)
def test_bad_lists_of_errors_are_refused(tmp_path, content, message):
    (tmp_path / "errors.csv").write_text(content)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'errors.csv'}: {message}")):
        read_errors(tmp_path / "errors.csv")


def test_manual_labels_are_found_by_name(label_file, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "manual").mkdir()
    for name in ("raw/a.nii.gz", "raw/b.nii.gz", "manual/b.nii.gz"):
        label_file(small_map(0), name)
    paired = paired_cases(tmp_path / "raw", tmp_path / "manual")
    assert [(case["case"], case["label"]) for case in paired] == [("b", str(tmp_path / "manual/b.nii.gz"))]
    assert [case["case"] for case in paired_cases(tmp_path / "raw")] == ["a", "b"]


def test_manual_labels_of_other_names_are_refused(label_file, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "manual").mkdir()
    label_file(small_map(0), "raw/a.nii.gz")
    label_file(small_map(0), "manual/c.nii.gz")
    with pytest.raises(InputError, match="has no label map with the name of one in"):
        paired_cases(tmp_path / "raw", tmp_path / "manual")
