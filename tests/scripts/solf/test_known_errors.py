import re

import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.solf.known_errors import check_cases, error_rates, read_errors, with_errors


def scored(*rows):
    """A table of scores; a row is case, label, decision."""
    table = pd.DataFrame(rows, columns=["case", "label", "decision"])
    return table.assign(organ=table["label"].map(ORGANS), votes=0, reason="")


def test_error_rates_of_a_table_made_by_hand():
    decisions = ["reject", "keep", "reject", "drop", "keep", "reject"]
    kinds = ["half", "half", "leak", np.nan, np.nan, np.nan]
    rates = error_rates(pd.DataFrame({"decision": decisions, "kind": kinds})).set_index("kind")
    assert rates.loc["half", ["labels", "found", "recall"]].tolist() == [2, 1, 0.5]
    assert rates.loc["all", ["labels", "found", "right_labels", "false_rejections"]].tolist() == [3, 2, 3, 2]
    assert rates.loc["all", ["precision", "recall", "f1", "false_rejection_rate"]].tolist() == pytest.approx(
        [2 / 4, 2 / 3, 4 / 7, 2 / 3]
    )


def test_nothing_rejected_has_f1_zero():
    rates = error_rates(pd.DataFrame({"decision": ["keep"], "kind": ["half"]})).set_index("kind")
    assert rates.loc["all", ["precision", "recall", "f1"]].tolist() == [0, 0, 0]


def test_known_errors_whose_label_is_absent_count_and_are_found_as_missing():
    scores = scored(("a", 1, "reject"), ("a", 2, "keep"), ("a", 5, "missing"), ("b", 5, "missing"), ("b", 6, "keep"))
    errors = pd.DataFrame(
        [("a", 1, "half"), ("a", 5, "lost"), ("a", 4, "lost"), ("c", 1, "half")], columns=["case", "label", "kind"]
    )
    table = with_errors(scores, errors, ORGANS)
    assert table[["case", "label", "organ", "decision"]].to_numpy().tolist() == [
        ["a", 1, "spleen", "reject"],
        ["a", 2, "kidney_right", "keep"],
        ["a", 4, "gallbladder", "absent"],
        ["a", 5, "liver", "missing"],
        ["b", 5, "liver", "missing"],
        ["b", 6, "stomach", "keep"],
    ]
    assert table["votes"].dtype == int
    rates = error_rates(table).set_index("kind")
    assert rates.loc["lost", ["labels", "found", "recall"]].tolist() == [2, 1, 0.5]
    assert rates.loc["all", ["labels", "found", "right_labels", "false_rejections", "false_missing"]].tolist() == [
        *(3, 2, 2, 0, 1)
    ]
    assert rates.loc["all", ["precision", "recall"]].tolist() == pytest.approx([2 / 3, 2 / 3])


def test_names_that_are_no_cases_are_named_with_the_nearest_one(caplog):
    check_cases(["p1", "p3"], {"p1", "p2", "p3"}, setting="known_errors")
    assert not caplog.text
    check_cases(["p1", "pp3", "x"], {"p1", "p2", "p3"}, setting="known_errors")
    assert "known_errors: 2 of its cases are not in this run, and left out: pp3 (p3?), x" in caplog.text
    with pytest.raises(InputError, match="verdicts: none of its cases, such as 'q', is one of the 2 of this run"):
        check_cases(["q"], {"p1", "p2"}, setting="verdicts")


def test_errors_are_listed_by_label_or_organ(tmp_path):
    (tmp_path / "a.csv").write_text("case,organ\n007,kidney_right\n")
    (tmp_path / "b.csv").write_text("case,label,kind\nNA,2,half\nNA,2,half\n1,3.0,\n", encoding="utf-8-sig")
    assert read_errors(tmp_path / "a.csv", ORGANS).to_numpy().tolist() == [["007", 2, "error"]]
    assert read_errors(tmp_path / "b.csv", ORGANS).to_numpy().tolist() == [["NA", 2, "half"], ["1", 3, "error"]]


def test_second_kind_of_error_is_warned_of(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("case,label,kind\n007,2,half\n007,2,leak\n")
    assert read_errors(tmp_path / "a.csv", ORGANS).to_numpy().tolist() == [["007", 2, "half"]]
    assert "a.csv: 1 labels have more than one kind of error; the first is used" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label\n2\n", "has the columns label; give case, with commas"),
        ("case\na\n", "has the columns case; give case, and label or organ."),
        ("case;label\na;2\n", "has the columns case;label; give case, with commas"),
        (
            "case,organ\nb,heart\na,nose\n",
            'the row "a,nose" has neither a label of the label table nor the name of an organ',
        ),
        ("case,organ\na,5\n", 'the row "a,5" has neither a label'),
        ("case,label\na,liver\n", 'the row "a,liver" has neither a label'),
        ("case,label\na,5.5\n", 'the row "a,5.5" has neither a label'),
        ("case,label\na,255\n", 'the row "a,255" has neither a label'),
        ("case,label\na,0\n", 'the row "a,0" has neither a label'),
        ("case,label\na,\n", 'the row "a," has neither a label'),
        ("case,label\n,5\n", 'the row ",5" has no case'),
        ("case,label,kind\na,5,all\n", 'the row "a,5,all" has a kind that stands for a row of the results'),
        ("", "cannot be read (No columns to parse from file)"),
        (b"\xff\xfe\0", "cannot be read ('utf-8' codec can't decode"),
        ('case,label\n"a,5\n', "cannot be read (Error tokenizing data."),
    ],
)
def test_bad_lists_of_errors_are_refused(tmp_path, content, message):
    (tmp_path / "errors.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'errors.csv'}: ")) as error:
        read_errors(tmp_path / "errors.csv", ORGANS)
    assert message in str(error.value)


def test_all_bad_rows_are_named_and_names_are_those_of_the_label_table(tmp_path):
    (tmp_path / "a.csv").write_text("case,organ\na,nose\nb,tooth\nc,liver\nd,colon\n")
    with pytest.raises(InputError, match=r"known_errors .*a\.csv: 3 problems; correct these rows") as error:
        read_errors(tmp_path / "a.csv", {1: "tooth"})
    assert [line.split('"')[1] for line in str(error.value).splitlines()[1:]] == ["a,nose", "c,liver", "d,colon"]
    (tmp_path / "a.csv").write_text("case,organ\nd,colon\n")
    assert read_errors(tmp_path / "a.csv", ORGANS)["label"].tolist() == [18]


def test_every_id_of_the_label_table_is_accepted(tmp_path):
    (tmp_path / "errors.csv").write_text("case,label\na,65535\na,255\na,1035.0\n")
    organs = {255: "a", 1035: "b", 65535: "c"}
    assert read_errors(tmp_path / "errors.csv", organs)["label"].tolist() == [65535, 255, 1035]
