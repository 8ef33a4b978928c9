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
    (tmp_path / "b.csv").write_text("case,label,kind\nNA,2,half\nNA,2,half\n1,3.0,\n", encoding="utf-8-sig")
    assert read_errors(tmp_path / "a.csv").to_numpy().tolist() == [["007", 2, "error"]]
    assert read_errors(tmp_path / "b.csv").to_numpy().tolist() == [["NA", 2, "half"], ["1", 3, "error"]]


def test_second_kind_of_error_is_warned_of(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("case,label,kind\n007,2,half\n007,2,leak\n")
    assert read_errors(tmp_path / "a.csv").to_numpy().tolist() == [["007", 2, "half"]]
    assert "a.csv: 1 labels have more than one kind of error; the first is used" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label\n2\n", "has the columns label; give case, and label or organ."),
        ("case\na\n", "has the columns case; give case, and label or organ."),
        ("case;label\na;2\n", "has the columns case;label; give case, and label or organ."),
        (
            "case,organ\nb,heart\na,nose\n",
            'the row "a,nose" has neither a label from 1 to 254 nor the name of an organ;',
        ),
        ("case,organ\na,5\n", 'the row "a,5" has neither a label'),
        ("case,label\na,liver\n", 'the row "a,liver" has neither a label'),
        ("case,label\na,5.5\n", 'the row "a,5.5" has neither a label'),
        ("case,label\na,255\n", 'the row "a,255" has neither a label'),
        ("case,label\na,0\n", 'the row "a,0" has neither a label'),
        ("case,label\na,\n", 'the row "a," has neither a label'),
        ("case,label\n,5\n", 'the row ",5" has no case; correct it.'),
        ("case,label,kind\na,5,all\n", 'the row "a,5,all" has the kind "all", which stands for all kinds in the'),
        ("", "cannot be read (No columns to parse from file)"),
        (b"\xff\xfe\0", "cannot be read ('utf-8' codec can't decode"),
        ('case,label\n"a,5\n', "cannot be read (Error tokenizing data."),
    ],
)
def test_bad_lists_of_errors_are_refused(tmp_path, content, message):
    (tmp_path / "errors.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
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
