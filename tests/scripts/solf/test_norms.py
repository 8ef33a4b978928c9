from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog

from scripts.common.errors import InputError
from scripts.solf.covariates import Covariates, learn_coding
from scripts.solf.fitting import fit_thresholds
from scripts.solf.norms import even, fit_coefficients, uneven
from scripts.solf.thresholds import FEATURES, judge, readable

TWO = {1: "spleen", 5: "liver"}
RULE = {"rule": "deciles", "features": ["volume_mm3"], "votes": 1, "decile_factor": 4.0}
LIVER = FEATURES.index("volume_mm3")


def cohort(count=200, *, seed=0):
    """Draw livers that grow by 0.3 in logarithm with a standard deviation of height, and spleens that do not."""
    rng = np.random.default_rng(seed)
    height = rng.normal(170, 10, count)
    people, records = [f"p{n:03d}" for n in range(count)], []
    for name, own in zip(people, height, strict=True):
        records.append({"case": name, "label": 1, "volume_mm3": np.exp(rng.normal(12, 0.1))})
        records.append({"case": name, "label": 5, "volume_mm3": np.exp(14 + 0.03 * (own - 170) + rng.normal(0, 0.05))})
    rows = {name: {"height": str(own)} for name, own in zip(people, height, strict=True)}
    return pd.DataFrame(records), Covariates("", rows, learn_coding(list(rows.values()), ["height"]))


@pytest.fixture(scope="module")
def fitted():
    table, covariates = cohort()
    return fit_thresholds(table, organs=TWO, covariates=covariates, **RULE)


def liver(log_volume):
    return pd.DataFrame({"label": [5], "volume_mm3": [np.exp(log_volume)]})


def test_absolute_residuals_are_as_small_as_those_of_the_linear_programme():
    rng = np.random.default_rng(1)
    designs = np.column_stack([np.ones(101), rng.normal(size=101), rng.random(101) < 0.4])
    values = designs @ [1.0, -0.5, 2.0] + rng.standard_t(2, 101)
    found = fit_coefficients(values, "asymmetry", rows=np.zeros(101, dtype=int), designs=designs, organs=1)[:, 0]
    both = np.hstack([designs, -designs, np.eye(101), -np.eye(101)])
    least = linprog(np.r_[np.zeros(6), np.ones(202)], A_eq=both, b_eq=values).fun
    assert np.abs(values - np.median(values) - designs @ found).sum() == pytest.approx(least, rel=1e-4)


def test_errors_hardly_move_the_coefficients():
    table, covariates = cohort()
    wrong = table["label"].eq(5) & (np.arange(len(table)) % 20 == 1)  # a tenth of the livers, of the largest people
    changed = table.assign(volume_mm3=table["volume_mm3"].where(~wrong, 100.0))
    before, after = (fit_thresholds(t, organs=TWO, covariates=covariates, **RULE).norms for t in (table, changed))
    sd = covariates.coding["height"]["sd"]
    assert before.coefficients[1, 1, LIVER] == pytest.approx(0.03 * sd, rel=0.05)
    assert after.coefficients[1, 1, LIVER] == pytest.approx(0.03 * sd, rel=0.05)
    assert abs(before.coefficients[1, 0, LIVER]) < 0.02


@pytest.mark.parametrize(
    ("height", "log_volume", "given", "plain"),
    [("150", 13.4, "keep", "keep"), ("145", 13.2, "keep", "keep"), ("150", 14.0, "reject", "keep")],
)
def test_large_liver_of_a_small_person_is_an_error_and_a_small_one_none(fitted, height, log_volume, given, plain):
    table, _ = cohort()
    decided = judge(liver(log_volume), fitted, {"": {"height": height}})
    assert decided["decision"].tolist() == [given]
    assert decided["covariates"].tolist() == ["used"]
    assert judge(liver(log_volume), fit_thresholds(table, organs=TWO, **RULE))["decision"].tolist() == [plain]


def test_small_persons_organ_is_kept_by_norms_alone():
    """A narrow rule, which cuts the tails of the whole cohort."""
    table, covariates = cohort()
    rule = {**RULE, "decile_factor": 1.8}
    small = {"": {"height": "147"}}
    given = fit_thresholds(table, organs=TWO, covariates=covariates, **rule)
    assert judge(liver(14 - 0.03 * 23), given, small)["decision"].tolist() == ["keep"]
    assert judge(liver(14 - 0.03 * 23), fit_thresholds(table, organs=TWO, **rule))["decision"].tolist() == ["reject"]


@pytest.mark.parametrize(("row", "mark"), [(None, "no row"), ({"height": ""}, "no height")])
def test_person_without_covariates_is_judged_as_by_a_fit_without(fitted, row, mark):
    table, _ = cohort()
    plain = fit_thresholds(table, organs=TWO, **RULE)
    for log_volume in np.linspace(11, 17, 25):
        decided = judge(liver(log_volume), fitted, {"": row} if row else {})
        expected = judge(liver(log_volume), plain)
        assert decided[["volume_mm3", "decision", "reason"]].equals(expected[["volume_mm3", "decision", "reason"]])
        assert decided["covariates"].tolist() == [mark]


def test_cases_without_covariates_do_not_widen_the_norms():
    table, covariates = cohort()
    rows = {name: row for name, row in covariates.rows.items() if name < "p150"}
    some = fit_thresholds(table, organs=TWO, covariates=replace(covariates, rows=rows), **RULE)
    width = np.log(some.high / some.low)[1, LIVER]
    assert width == pytest.approx(8 * 0.05, rel=0.3)
    assert np.log(some.norms.high / some.norms.low)[1, LIVER] > 4 * width


def test_organ_of_few_people_has_no_norm():
    table, covariates = cohort(60)
    few = table[(table["label"] == 1) | (table["case"] < "p015")].reset_index(drop=True)
    fitted = fit_thresholds(few, organs=TWO, covariates=covariates, rule="percentile", features=["volume_mm3"], votes=1)
    assert not fitted.norms.coefficients[:, 1].any()
    assert fitted.norms.coefficients[:, 0, LIVER].any()
    decided = judge(few, fitted, covariates.rows)
    livers = decided["label"] == 5
    assert decided.loc[livers, "volume_mm3"].equals(few.loc[livers, "volume_mm3"])
    assert not decided.loc[~livers, "volume_mm3"].equals(few.loc[~livers, "volume_mm3"])


def test_count_that_nearly_never_varies_stays():
    designs = np.column_stack([np.ones(100), np.linspace(-1, 1, 100)])
    counts = np.r_[np.full(90, 1.0), np.full(10, 40.0)]
    assert not fit_coefficients(counts, "components", rows=np.zeros(100, dtype=int), designs=designs, organs=1).any()


def test_adjusting_can_be_undone(fitted):
    table, covariates = cohort()
    designs, _ = fitted.norms.designs(list(covariates.rows), covariates.rows)
    values, rows = table["volume_mm3"].to_numpy()[:, None], np.tile([0, 1], 200)
    adjusted = fitted.norms.adjusted(values, ["volume_mm3"], rows, np.repeat(designs, 2, axis=0))
    assert np.log(adjusted[1::2]).std() < 0.3 * np.log(values[1::2]).std()
    again = fitted.norms.adjusted(adjusted, ["volume_mm3"], rows, np.repeat(designs, 2, axis=0), sign=-1)
    np.testing.assert_allclose(again, values, rtol=1e-12)


@pytest.mark.parametrize("feature", ["volume_mm3", "components", "sphericity"])
def test_even_is_undone_by_uneven(feature):
    np.testing.assert_allclose(uneven(even(np.array([0.5, 3.0, 700.0]), feature), feature), [0.5, 3, 700])


def test_filter_that_needs_covariates_says_so(fitted):
    with pytest.raises(InputError, match="the filter was fitted with the covariates height: set covariates to a CSV"):
        judge(liver(14), fitted)


def test_rule_of_fixed_ranges_takes_no_covariates():
    table, covariates = cohort(60)
    with pytest.raises(InputError, match="the fixed ranges of the rule ranges take no covariates"):
        fit_thresholds(table, organs=TWO, rule="ranges", covariates=covariates)


def test_thresholds_of_other_norms_have_another_fingerprint(fitted):
    other = replace(fitted.norms, coefficients=fitted.norms.coefficients * 2)
    coded = replace(fitted.norms, coding={"height": {**fitted.norms.coding["height"], "mean": 1.0}})
    found = {replace(fitted, norms=norms).fingerprint for norms in (fitted.norms, other, coded, None)}
    assert len(found) == 4


def test_thresholds_json_has_the_coding_and_the_coefficients(fitted):
    content = readable(fitted)
    assert content["covariates"]["columns_of_coefficients"] == ["constant", "height"]
    assert content["covariates"]["coding"] == fitted.norms.coding
    own = content["organs"]["5"]["volume_mm3"]["coefficients"]
    assert own == fitted.norms.coefficients[:, 1, LIVER].tolist()
    assert "covariates" not in readable(replace(fitted, norms=None))
