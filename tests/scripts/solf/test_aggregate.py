"""Aggregated results hold no name, no small count and nothing that small counts could be computed from."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.solf.aggregate import FILES, _quantiles, write_aggregate
from scripts.solf.filter import LabelFilter
from scripts.solf.fitting import fit_thresholds
from scripts.solf.tables import cohort_table
from scripts.solf.thresholds import judge
from scripts.solf.training import FilterTrainer
from tests.scripts.solf.conftest import AFFINE, small_map

HOSTILE = [
    "=cmd('x')",
    'Müller, "Hans"',
    "4711-secret",
    "two\nlines",
    "../up",
    "'; DROP",
    "${HOME}",
    "<b>bold</b>",
    "zz\u202e",
]


def named(number):
    return f"{HOSTILE[number % len(HOSTILE)]}#{number}"


def decisions_of(cohort, fitted, count, *, without=()):
    """Judge the first cases under hostile names; `without` has pairs of case and label that are left out."""
    table = cohort_table([(named(n), cohort[f"s{n:02d}"]) for n in range(count)], ORGANS)
    left = [(case, label) not in without for case, label in zip(table["case"], table["label"], strict=True)]
    return judge(table[left].reset_index(drop=True), fitted)


def written(folder, decisions, thresholds, failed=0):
    write_aggregate(folder / "aggregate", decisions=decisions, thresholds=thresholds, failed=failed)
    table = pd.read_csv(folder / "aggregate" / "aggregate.csv", dtype=str, keep_default_na=False)
    return table.set_index("organ")


def test_files_hold_no_name_of_a_case(cohort, fitted, tmp_path):
    """Each name is looked for as a whole and in its parts, in every encoding that a writer may choose."""
    decisions = decisions_of(cohort, fitted, 60)
    assert decisions["case"].nunique() == 60
    written(tmp_path, [decisions[:90], decisions[90:]], fitted, failed=7)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(FILES)
    for path in (tmp_path / "aggregate").iterdir():
        content = path.read_bytes()
        for name in map(named, range(60)):
            for text in (name, name.split("#")[0], json.dumps(name)[1:-1]):
                assert text.encode("utf-8", "surrogateescape") not in content, (path, name)


def test_counts_below_five_are_nowhere(cohort, fitted, tmp_path):
    """Two rejected kidneys, and one kidney that two cases lack."""
    lost = [(named(n), 3) for n in (1, 2)]
    decisions = decisions_of(cohort, fitted, 60, without=lost)
    rejected = decisions[decisions["decision"] == "reject"].groupby("label").size()
    assert 0 < rejected.max() < 5
    table = written(tmp_path, [decisions], fitted, failed=2)
    assert table[["cases", "rejected", "missing"]].isin(["<5", ">55"]).all(axis=None)
    assert (table[["rejected_percent", "missing_percent"]] == "").all(axis=None)
    edges = table["touches_border"]
    assert edges.str.fullmatch(r"<5|withheld|\d\d|[5-9]").all()
    assert edges["muscle"].isdecimal() == (table["touches_border_percent"]["muscle"] != "")
    assert table.loc["kidney_left", "cases"] == table.loc["kidney_right", "cases"] == ">55"
    assert table.loc["spleen", "cases"] == "<5"
    assert "60 cases; <5 more could not be read" in (tmp_path / "aggregate" / "about.txt").read_text()


def test_counts_of_at_least_five_are_exact_unless_the_rest_is_small(cohort, fitted, tmp_path):
    decisions = decisions_of(cohort, fitted, 60, without=[(named(n), 3) for n in range(10)])
    decisions.loc[decisions["label"] == 2, "decision"] = ["reject"] * 57 + ["keep"] * 3
    decisions.loc[decisions["label"] == 3, "decision"] = ["reject"] * 6 + ["keep"] * 44
    decisions.loc[decisions["label"] == 66, "touches_border"] = [True] * 54 + [False] * 6
    table = written(tmp_path, [decisions], fitted)
    assert table.loc["kidney_right", ["cases", "rejected", "rejected_percent"]].tolist() == [">55", "withheld", ""]
    assert table.loc["kidney_left", ["cases", "rejected", "rejected_percent"]].tolist() == ["50", "6", "10"]
    assert table.loc["muscle", ["touches_border", "touches_border_percent"]].tolist() == ["54", "90"]


def test_missing_organs_are_a_part_of_those_that_lack_it(cohort, fitted, tmp_path):
    decisions = decisions_of(cohort, fitted, 60, without=[(named(n), 3) for n in range(12)])
    absent = decisions[decisions["label"] == 2][:9].assign(label=3, decision="missing", touches_border=pd.NA)
    for count, expected in ((9, ">7"), (7, "7"), (3, "<5")):
        table = written(tmp_path, [pd.concat([decisions, absent[:count]])], fitted)
        assert table.loc["kidney_left", ["cases", "missing"]].tolist() == ["48", expected]


def test_small_counts_cannot_be_computed_from_what_is_shown(tmp_path):
    """Every number of cases with the organ and of rejected ones among 12: each difference is 0 or at least 5."""
    from scripts.solf.aggregate import shown

    total = 12
    for present in range(total + 1):
        whole = shown(present, total)
        for rejected in range(present + 1):
            part = shown(rejected, present, whole_shown=whole == str(present))
            numbers = [int(text) for text in (str(total), whole, part) if text.isdecimal()]
            differences = [one - other for one in numbers for other in numbers if one > other]
            assert min([*numbers, *differences]) >= 5
            if not whole.isdecimal():
                assert not part.startswith(">"), "tells how many cases have the organ"


def test_quantiles_are_means_of_five_people_and_no_one_is_in_two():
    values = np.random.default_rng(0).permutation(np.arange(26.0) ** 2)
    found = _quantiles(values)
    ranks = [range(0, 5), range(4, 9), range(10, 15), range(17, 22), range(21, 26)]
    assert list(found) == [5, 25, 50, 75, 95]
    for value, rank in zip(found.values(), ranks, strict=True):
        assert value == np.mean([n**2 for n in rank])
    assert _quantiles(np.array([*values[:7], np.nan])) == pytest.approx(
        {5: np.nan, 25: np.nan, 50: np.sort(values[:7])[1:6].mean(), 75: np.nan, 95: np.nan}, nan_ok=True
    )
    assert np.isnan(list(_quantiles(values[:4]).values())).all()


def test_thresholds_have_no_small_count_no_cohort_and_no_extreme_of_few(cohort, tmp_path):
    """The rule percentile gives values between the two lowest of 60."""
    table = cohort_table(cohort.items(), ORGANS)
    few = table[(table["label"] != 3) | table["case"].isin(["s00", "s01", "s02"])]
    for rule, known in (("percentile", False), ("mad", True)):
        fitted = fit_thresholds(few, organs=ORGANS, rule=rule)
        written(tmp_path, [judge(few, fitted)], fitted)
        content = json.loads((tmp_path / "aggregate" / "thresholds.json").read_text())
        assert (content["rule"], content["subjects"], "cohort" in content) == (rule, "60", False)
        right, left = (content["organs"][label] for label in "23")
        assert (right["subjects"], left["subjects"]) == (">55", "<5")
        assert set(left["sphericity"].values()) == {None}
        assert [value is not None for value in right["sphericity"].values()] == [known, known]
        numbers = re.findall(r"\d+\.\d+", json.dumps(content["organs"]))
        assert bool(numbers) == known
        assert all(len(number.replace(".", "").lstrip("0")) <= 3 or number.endswith(".0") for number in numbers)


def test_cleaning_and_fitting_write_no_row_of_a_case(cohort_dataset, cleaner, tmp_path):
    dataset = cohort_dataset(8)
    cleaner(dataset).run()
    assert (tmp_path / "out" / "decisions.csv").is_file()
    cleaner(dataset, aggregate_only="true", qc=True).run()
    FilterTrainer(
        network=LabelFilter(),
        dataset=dataset,
        ckpt_path=tmp_path / "fit" / "model.pt",
        rule={"epsilon_percent": 20.0},
        output_dir=tmp_path / "fit",
        workers=0,
        aggregate_only=True,
    ).run()
    for folder in (tmp_path / "out", tmp_path / "fit"):
        names = {path.name for path in folder.iterdir()}
        assert not names & {"decisions.csv", "decisions.parquet", "qc"}
        assert {path.name for path in (folder / "aggregate").iterdir()} == {*FILES}
        content = b"".join(path.read_bytes() for path in (folder / "aggregate").iterdir())
        assert not re.search(rb"\bs0\d\b", content)
        assert b"muscle,>3," in content


def test_failed_cases_are_counted_but_not_named(cohort_dataset, cleaner, tmp_path):
    dataset = cohort_dataset(3)
    for n in range(5):
        path = tmp_path / "maps" / f"secret{n}.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros_like(small_map(0)), AFFINE), path)
        dataset.data.append({"case": f"secret{n}", "image": str(path)})
    cleaner(dataset, aggregate_only=True).run()
    files = {path.name: path.read_text() for path in (tmp_path / "out" / "aggregate").iterdir()}
    assert "<5 cases; 5 more could not be read" in files["about.txt"]
    assert not any("secret" in text for text in files.values())


def test_folder_with_other_files_is_refused_before_anything_is_measured(cohort_dataset, cleaner, measured, tmp_path):
    """It is made to be copied as a whole."""
    folder = tmp_path / "out" / "aggregate"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("s01")
    with pytest.raises(InputError, match=r"aggregate: holds 'notes.txt', which is no aggregated result; move it away"):
        cleaner(cohort_dataset(2), aggregate_only=True)
    (folder / "notes.txt").rename(folder / ".tmp-0123456789abcdef.csv")
    cleaner(cohort_dataset(2), aggregate_only=True).run()
    assert {path.name for path in folder.iterdir()} == {*FILES}
    with pytest.raises(InputError, match="aggregate_only is 'maybe': give true or false"):
        cleaner(cohort_dataset(2), aggregate_only="maybe")
