import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.solf.tables import cohort_table
from scripts.solf.thresholds import judge
from scripts.solf.verdicts import (
    add_verdicts,
    consensus,
    overruled,
    read_verdicts,
    verdicts_of_case,
    with_verdicts,
)
from tests.scripts.solf.conftest import small_map

HEAD = "case,label,organ,verdict,reviewer,reviewed_at,comment\n"


@pytest.fixture
def verdicts(tmp_path):
    """Write rows as the report does and read them; a row is `case,label,verdict,reviewer` and perhaps an hour."""

    def make(*rows):
        cells = [(*row.split(","), "20")[:5] for row in rows]
        lines = [f"{c},{n},,{v},{who},2026-11-21T{hour}:00:00Z,\n" for c, n, v, who, hour in cells]
        (tmp_path / "verdicts.csv").write_text(HEAD + "".join(lines))
        return read_verdicts(tmp_path / "verdicts.csv")

    return make


def test_no_file_gives_no_verdicts():
    assert read_verdicts("") is None


def test_latest_verdict_of_a_reviewer_counts_in_a_folder_of_files(tmp_path):
    (tmp_path / "a.csv").write_text(
        f"{HEAD}p1,5,liver,accept,alice,2026-11-21T20:15:00Z,\np1,5,liver,reject,alice,2026-11-21T21:30:00+01:00,late\n"
    )
    (tmp_path / "b.csv").write_text(
        "case,verdict,label,reviewer,reviewed_at\np1, accept ,5.0,alice,2026-11-21T20:20:00.250Z\np1,accept,5,bob,"
        "2026-11-21T20:20:00Z\n",
        encoding="utf-8-sig",
    )
    (tmp_path / ".tmp.csv").write_text("no verdicts")
    table = read_verdicts(tmp_path)
    assert table[["case", "label", "organ", "verdict", "reviewer", "comment"]].to_numpy().tolist() == [
        ["p1", 5, "liver", "reject", "alice", "late"],
        ["p1", 5, "liver", "accept", "bob", ""],
    ]


def test_verdicts_of_equal_times_are_those_read_last(verdicts):
    assert verdicts("p1,5,accept,alice", "p1,5,reject,alice")["verdict"].tolist() == ["reject"]


def test_label_table_of_other_organs_is_used(tmp_path, json_file):
    (tmp_path / "a.csv").write_text(f"{HEAD}p1,1000,tooth,accept,alice,2026-11-21T20:15:00Z,\n")
    with pytest.raises(InputError, match="its label is '1000', which the label table lacks"):
        read_verdicts(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(f"{HEAD}p1,1,tooth,accept,alice,2026-11-21T20:15:00Z,\n")
    table = read_verdicts(tmp_path / "a.csv", label_table=json_file({"1": "tooth"}))
    assert table["organ"].tolist() == ["tooth"]


def test_all_bad_rows_are_named_in_one_message(tmp_path):
    good = "p1,5,liver,accept,alice,2026-11-21T20:15:00Z,\n"
    (tmp_path / "a.csv").write_text(
        f"{HEAD}{good},5,,accept,alice,2026-11-21T20:15:00Z,\np1,x,,accept,alice,2026-11-21T20:15:00Z,\n"
        "p1,5,spleen,accept,alice,2026-11-21T20:15:00Z,\np1,5,,maybe,alice,2026-11-21T20:15:00Z,\n"
    )
    (tmp_path / "b.csv").write_text(f"{HEAD}p1,5,,accept,,2026-11-21T20:15:00,\np1,5,,accept,bob,21.11.2026,\n")
    with pytest.raises(InputError) as error:
        read_verdicts(tmp_path)
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    assert str(error.value).splitlines() == [
        f"verdicts {tmp_path}: 7 problems; correct or delete these rows",
        f"{a}, row 3: has no case",
        f"{a}, row 4: its label is 'x', which the label table lacks",
        f"{a}, row 5: its organ is 'spleen', but label 5 is liver",
        f"{a}, row 6: its verdict is 'maybe', not accept or reject",
        f"{b}, row 2: has no reviewer",
        f"{b}, row 2: its reviewed_at is '2026-11-21T20:15:00', not a time with its zone such as 2026-11-21T20:15:00Z",
        f"{b}, row 3: its reviewed_at is '21.11.2026', not a time with its zone such as 2026-11-21T20:15:00Z",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "case;label\na;2\n",
            "has the columns case;label; give case, label, verdict, reviewer, reviewed_at, with commas",
        ),
        ("case,label,verdict,reviewer\n", "has the columns case, label, verdict, reviewer; give reviewed_at, with"),
        ("", "cannot be read (No columns to parse from file); give a CSV with case, label, verdict,"),
        (b"\xff\xfe\0", "cannot be read ('utf-8' codec can't decode"),
    ],
)
def test_files_that_hold_no_verdicts_are_refused(tmp_path, content, message):
    (tmp_path / "v.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'v.csv'}: {message}")):
        read_verdicts(tmp_path / "v.csv")


def test_missing_file_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: cannot be read \(.*No such file"):
        read_verdicts(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"holds no verdicts \(\.csv\); give a file that the report saved\."):
        read_verdicts(tmp_path)


def test_majority_decides_and_a_tie_does_not(verdicts):
    merged = consensus(
        verdicts(
            *("p1,5,accept,alice,08", "p1,5,reject,bob,23", "p1,5,accept,carol,09"),
            *("p1,2,accept,alice", "p1,2,reject,bob"),
            "p2,5,reject,bob",
        )
    )
    assert merged.to_numpy().tolist() == [
        ["p1", 2, "kidney_right", "", "alice, bob", "2026-11-21T20:00:00Z"],
        ["p1", 5, "liver", "accept", "alice, carol", "2026-11-21T09:00:00Z"],
        ["p2", 5, "liver", "reject", "bob", "2026-11-21T20:00:00Z"],
    ]


def test_ties_and_unknown_cases_are_named_in_warnings(verdicts, caplog):
    rows = verdicts("p1,2,accept,alice", "p1,2,reject,bob", "p1,5,reject,bob", "p01,5,reject,bob", "zzz,5,reject,bob")
    cases = add_verdicts([{"case": "p1", "image": "p1.nii"}, {"case": "p2", "image": "p2.nii"}], rows)
    assert cases == [
        {"case": "p1", "image": "p1.nii", "verdicts": '{"5": "reject"}'},
        {"case": "p2", "image": "p2.nii", "verdicts": ""},
    ]
    assert verdicts_of_case(cases[0]["verdicts"]) == {5: "reject"}
    assert verdicts_of_case("") == {}
    assert "as many accept as reject 1 labels, which the rule decides: p1 kidney_right" in caplog.text
    assert "no case is named p01 (p1?), zzz" in caplog.text


def test_people_overrule_the_rule_and_the_reason_says_who_and_when(cohort, fitted, verdicts):
    table = cohort_table([(case, cohort[case]) for case in ("s05", "s07")], ORGANS)
    before = judge(table, fitted)
    merged = consensus(verdicts("s05,2,accept,alice", "s07,2,reject,bob", "s07,3,accept,bob"))
    after = with_verdicts(before, merged).set_index(["case", "label"])
    assert after["decision"].to_dict() == {
        **{("s05", 2): "keep", ("s05", 3): "keep", ("s05", 66): "keep"},
        **{("s07", 2): "reject", ("s07", 3): "keep", ("s07", 66): "keep"},
    }
    rule = before.set_index(["case", "label"])["reason"]["s05", 2]
    assert "eccentricity" in rule
    when = "at 2026-11-21T20:00:00Z"
    assert after["reason"]["s05", 2] == f"accepted by alice {when} against the rule: {rule}"
    assert after["reason"]["s07", 2] == f"rejected by bob {when} against the rule"
    assert after["reason"]["s07", 3] == f"accepted by bob {when}"
    assert after.loc[("s05", 66), ["verdict", "reviewer", "reviewed_at", "reason"]].tolist() == ["", "", "", ""]
    assert with_verdicts(before, None) is before


def test_what_is_no_label_cannot_be_accepted():
    decisions = pd.Series(["keep", "reject", "missing", "keep"])
    by_people = pd.Series(["reject", "accept", "accept", np.nan])
    assert overruled(decisions, by_people).tolist() == ["reject", "keep", "missing", "keep"]


def test_cleaned_maps_and_tables_follow_the_verdicts(cohort_dataset, cleaner, verdicts, tmp_path, caplog):
    rows = verdicts("s05,2,accept,alice", "s04,66,reject,alice", "s04,5,reject,alice")
    dataset = cohort_dataset(7)
    dataset.data = add_verdicts(dataset.data, rows)
    cleaner(dataset, verdicts=rows).run()
    assert "verdicts: 1 are about labels that their cases lack: s04 liver" in caplog.text
    table = pd.read_csv(tmp_path / "out" / "decisions.csv").set_index(["case", "label"])
    rejected = table.index[table["decision"] == "reject"].tolist()
    assert rejected == [("s04", 66), ("s06", 3), ("s06", 66)]
    assert table.loc[("s04", 66), ["verdict", "reviewer", "reviewed_at"]].tolist() == [
        "reject",
        "alice",
        "2026-11-21T20:00:00Z",
    ]
    for case in (4, 5, 6):
        voxels = np.asarray(nib.load(tmp_path / "out" / f"s{case:02d}_cleaned.nii.gz").dataobj)
        before = small_map(case, half=[2] * (case == 5), fragments=[3] * (case == 6))
        gone = [label for name, label in rejected if name == f"s{case:02d}"]
        np.testing.assert_array_equal(voxels, np.where(np.isin(before, gone), 255, before))


def test_accepted_labels_lower_the_share_that_drops_a_case(cohort_dataset, cleaner, verdicts, tmp_path):
    options = {"rejected": "drop_case", "drop_share": 0.2}
    cleaner(cohort_dataset(6), **options).run()
    assert not (tmp_path / "out" / "s05_cleaned.nii.gz").exists()
    dataset, rows = cohort_dataset(6), verdicts("s05,2,accept,alice")
    dataset.data = add_verdicts(dataset.data, rows)
    cleaner(dataset, verdicts=rows, **options).run()
    assert (tmp_path / "out" / "s05_cleaned.nii.gz").exists()
    assert set(pd.read_parquet(tmp_path / "out" / "decisions.parquet")["decision"]) == {"keep"}


def test_changed_verdicts_clean_again_only_the_cases_that_they_concern(cohort_dataset, cleaner, verdicts, measured):
    def clean(*rows):
        dataset, table = cohort_dataset(4), verdicts(*rows) if rows else None
        dataset.data = add_verdicts(dataset.data, table)
        cleaner(dataset, verdicts=table).run()
        return len(measured)

    assert clean() == 4
    assert clean("s01,2,reject,alice") == 5
    assert clean("s01,2,reject,alice", "s03,2,reject,alice") == 6
    assert clean("s01,2,reject,bob", "s03,2,reject,alice") == 6, "who decided is in the table alone"
    assert clean("s01,2,accept,alice", "s03,2,reject,alice") == 7
    assert clean() == 9
