import json
import re

import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.solf.covariates import (
    Covariates,
    add_covariates,
    check_coded,
    design,
    design_names,
    learn_coding,
    month,
    read_covariates,
    warn_of_unknown,
)

CASES = [{"case": f"p{n:02d}"} for n in range(60)]


def rows(count=60, **changed):
    """Return lines of a table; `changed` is the text of single lines by number, as `r3`."""
    lines = [f"p{n:02d},{'mf'[n % 2]},{20 + n},{1100 + n % 3 // 2},2026-0{1 + n % 3}-05" for n in range(count)]
    for key, line in changed.items():
        lines[int(key[1:])] = line
    return "\n".join(["case,sex,age,site,date", *lines])


@pytest.fixture
def table(tmp_path):
    def write(text):
        (tmp_path / "cov.csv").write_text(text, encoding="utf-8-sig")
        return tmp_path / "cov.csv"

    return write


def test_numbers_are_standardised_and_texts_and_sites_coded_against_the_most_frequent(table):
    read = read_covariates(table(rows()), cases=CASES, columns=[])
    assert design_names(read.coding) == ["constant", "age", "sex=m", "site=1101"]
    matrix, problems = design(read.coding, [read.rows[case["case"]] for case in CASES])
    assert set(problems) == {""}
    np.testing.assert_allclose(matrix.mean(axis=0), [1, 0, 0.5, 1 / 3], atol=1e-12)
    np.testing.assert_allclose(matrix[:, 1].std(), 1)
    assert matrix[2].tolist() == pytest.approx([1, (22 - 49.5) / np.arange(60).std(), 1, 1])
    assert read.groups == ["site", "date"]


def test_columns_of_choice_alone_are_coded(table):
    assert list(read_covariates(table(rows()), cases=CASES, columns=["age"]).coding) == ["age"]
    assert read_covariates(table(rows()), cases=CASES).coding == {}
    assert read_covariates("", cases=CASES) is None


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ("f,30,1100,", ""),
        ("f,,1100,", "no age"),
        ("f,NA,1100,", "no age"),
        ("x,30,1100,", "unknown sex x"),
        ("f,1.7,1100,", "age 1.7 is not from 20 to 79"),
        ("f,thirty,1102,", "age thirty is not from 20 to 79, unknown site 1102"),
    ],
)
def test_person_without_a_usable_value_has_no_design_and_a_reason(table, cells, problem):
    coding = read_covariates(table(rows()), cases=CASES, columns=[]).coding
    person = read_covariates(table(rows(r0=f"p00,{cells}")), cases=CASES).rows["p00"]
    matrix, problems = design(coding, [person, None])
    assert problems == [problem, "no row"]
    assert np.isnan(matrix).all(axis=1).tolist() == [bool(problem), True]


def test_level_of_few_people_is_unknown():
    """A site of one person would predict this person's errors."""
    levels = learn_coding([{"site": "a"}] * 25 + [{"site": "b"}] * 30 + [{"site": "c"}] * 19, ["site"])["site"][
        "levels"
    ]
    assert levels == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "columns", "problems"),
    [
        ("name,age\np00,3", None, ["has no column case, but name, age; separate columns by commas"]),
        ("case;age\np00;3", None, ["has no column case, but case;age; separate"]),
        ("", None, ["has no column case, but nothing"]),
        (
            "case,age\nx1,3",
            None,
            ["has no case of the cohort: its cases are such as x1; the cohort's are such as p00,"],
        ),
        ("case,age,age\np00,3,4,5", None, ["the column 'age' repeats", "row 2 has more cells than columns"]),
        (
            rows(r3="p03,m,old,1100,05.01.2026", r5="p04,f,40,1100,") + "\nq,f,nan,,",
            [],
            [
                "the case 'p04' has 2 rows",
                "row 5: date is '05.01.2026', not a date such as 2026-11-21",
                "row 5: age is 'old', not a number",
            ],
        ),
        (
            rows(),
            ["age", "weight", "date"],
            ["covariate_columns names weight, date, the table has case, sex, age, site"],
        ),
        (rows(19), ["age"], ["19 people of the cohort have all of age, 20 are needed"]),
        ("case,id\n" + "\n".join(f"p{n:02d},x{n}" for n in range(60)), [], ["no value of id is that of 20 people"]),
        ("case,date\np00,2026-01-05", [], ["has no covariates; add columns such as sex, age or height"]),
    ],
)
def test_all_faults_of_a_table_are_named_at_once(table, text, columns, problems):
    path = table(text)
    with pytest.raises(InputError, match=re.escape(f"covariates {path}: {len(problems)} problem")) as caught:
        read_covariates(path, cases=CASES, columns=columns)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(problems)
    assert all(line.startswith(problem) for line, problem in zip(lines, problems, strict=True)), lines


def test_more_columns_than_the_weights_hold_are_refused(table):
    cases = [{"case": f"p{n}"} for n in range(40 * 20)]
    path = table("case,room\n" + "\n".join(f"p{n},room {n % 40}" for n in range(40 * 20)))
    with pytest.raises(InputError, match="the covariates make 40 columns, at most 32 can be used: name fewer in"):
        read_covariates(path, cases=cases, columns=[])


def test_file_that_cannot_be_read(tmp_path):
    (tmp_path / "image.csv").write_bytes(b"\xff\x00\x81")
    for name in ("none.csv", "image.csv"):
        with pytest.raises(InputError, match=f"{name}: cannot be read .*; give a CSV with case and covariates."):
            read_covariates(tmp_path / name, cases=CASES)


def test_table_that_lacks_what_the_filter_was_fitted_with_is_refused(table):
    coding = read_covariates(table(rows()), cases=CASES, columns=["age", "sex"]).coding
    with pytest.raises(
        InputError, match=r"2 problems(.|\n)*has no column sex(.|\n)*case p01: age is 'x', not a number"
    ):
        check_coded(read_covariates(table("case,age\np00,3\np01,x"), cases=CASES), coding)
    check_coded(read_covariates(table("case,age,sex\np00,,f"), cases=CASES), coding)


def test_cases_get_their_own_covariates_as_text(table):
    cases = [{"case": "p00", "verdicts": "x"}, {"case": "other"}]
    described = add_covariates(cases, read_covariates(table("case,age\np00,3"), cases=CASES))
    assert [json.loads(case["covariates"]) for case in described] == [{"age": "3"}, None]
    assert described[0]["verdicts"] == "x"
    assert [case["covariates"] for case in add_covariates(cases, None)] == ["", ""]


def test_cases_without_covariates_are_counted_in_one_warning(caplog):
    coding = {"age": {"mean": 50.0, "sd": 10.0, "low": 20.0, "high": 80.0}}
    known = Covariates("", {f"p{n:02d}": {"age": "50" if n else ""} for n in range(53)}, {})
    warn_of_unknown(known, coding, CASES)
    warn_of_unknown(known, coding, CASES[1:50])
    [message] = caplog.messages
    assert message.startswith(
        "covariates: 8 of 60 cases are judged by the thresholds without covariates: p00 (no age),"
    )
    assert message.endswith("p56 (no row), ...")


def test_month():
    assert [month(text) for text in ("2026-11-21", "2026-11-21T10:00:00Z", "", "2026")] == ["2026-11"] * 2 + [None] * 2
