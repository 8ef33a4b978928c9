import logging
import re

import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.solf.fitting import cohort_fingerprint, fit_thresholds
from scripts.solf.thresholds import FEATURES, MEASURED, SHAPE, judge, readable

ORGANS = {1: "spleen", 3: "kidney_left"}


def table(n=101, seed=0, labels=(1, 3)):
    rng = np.random.default_rng(seed)
    parts = [pd.DataFrame({"label": k, **{f: rng.lognormal(0, 0.3, n) for f in MEASURED}}) for k in labels]
    return pd.concat(parts, ignore_index=True)


def bounds(thresholds, organ, feature):
    at = list(thresholds.organs).index(organ), FEATURES.index(feature)
    return thresholds.low[at], thresholds.high[at]


def test_percentile_thresholds_are_the_quantiles_of_each_organ():
    cohort = table()
    fitted = fit_thresholds(cohort, organs=ORGANS, epsilon_percent=5)
    for organ in ORGANS:
        for feature in SHAPE:
            values = cohort.loc[cohort["label"] == organ, feature]
            assert bounds(fitted, organ, feature) == pytest.approx(tuple(values.quantile([0.05, 0.95])))


def test_epsilon_percent_of_a_cohort_is_outside_at_each_end():
    cohort = table(1000, labels=[1])
    fitted = fit_thresholds(cohort, organs=ORGANS, features=["sphericity"], votes=1, epsilon_percent=2)
    assert (judge(cohort, fitted)["decision"] == "reject").sum() == 40


def test_iqr_thresholds_are_tukeys_fences():
    cohort = table()
    fitted = fit_thresholds(cohort, organs=ORGANS, rule="iqr", iqr_factor=2)
    low, high = cohort.loc[cohort["label"] == 3, "eccentricity"].quantile([0.25, 0.75])
    assert bounds(fitted, 3, "eccentricity") == pytest.approx((low - 2 * (high - low), high + 2 * (high - low)))


@pytest.mark.parametrize("feature", ["sphericity", "volume_mm3"])
def test_mad_thresholds_are_robust_standard_deviations_of_logarithms_where_values_are_skewed(feature):
    cohort = table()
    fitted = fit_thresholds(cohort, organs=ORGANS, rule="mad", features=[feature], votes=1, mad_factor=3)
    values = cohort.loc[cohort["label"] == 1, feature]
    values = np.log(values) if feature == "volume_mm3" else values
    reach = 3 * 1.4826 * (values - values.median()).abs().median()
    expected = np.array([values.median() - reach, values.median() + reach])
    expected = np.exp(expected) if feature == "volume_mm3" else expected
    assert bounds(fitted, 1, feature) == pytest.approx(tuple(expected))


def test_mad_of_mostly_equal_values_takes_their_standard_deviation():
    cohort = table(100, labels=[1]).assign(asymmetry=[0.0] * 90 + [1.0] * 10)
    fitted = fit_thresholds(cohort, organs=ORGANS, rule="mad", features=["asymmetry"], votes=1, mad_factor=2)
    assert bounds(fitted, 1, "asymmetry") == pytest.approx((-0.6, 0.6))


@pytest.mark.parametrize("rule", ["mad", "deciles"])
@pytest.mark.parametrize(("errors", "usual", "most"), [(0, 1, 4), (3, 1, 4), (0, 9, 16)])
def test_components_have_a_scale_where_most_labels_have_as_many(rule, errors, usual, most):
    """The standard deviation of a root of counts is 0.25 at least, whatever the share of labels with islands."""
    cohort = table(100, labels=[1]).assign(components=[usual] * (100 - errors) + [50] * errors)
    options = {"features": ["components"], "votes": 1, "mad_factor": 4.0, "decile_factor": 4.0}
    fitted = fit_thresholds(cohort, organs=ORGANS, rule=rule, **options)
    assert bounds(fitted, 1, "components")[1] == pytest.approx(most)
    assert bounds(fitted, 1, "components")[0] <= usual
    assert (judge(cohort, fitted)["decision"] == "reject").sum() == errors


def test_decile_thresholds_have_a_side_each():
    cohort = table()
    fitted = fit_thresholds(cohort, organs=ORGANS, rule="deciles", features=["sphericity"], votes=1, decile_factor=3)
    low, middle, high = cohort.loc[cohort["label"] == 1, "sphericity"].quantile([0.1, 0.5, 0.9])
    expected = middle - 3 * (middle - low) / 1.2816, middle + 3 * (high - middle) / 1.2816
    assert bounds(fitted, 1, "sphericity") == pytest.approx(expected)


def test_decile_thresholds_of_volumes_are_those_of_their_logarithms():
    cohort = table()
    options = {"organs": ORGANS, "rule": "deciles", "votes": 1}
    fitted = fit_thresholds(cohort, features=["volume_mm3"], **options)
    logs = fit_thresholds(cohort.assign(sphericity=np.log(cohort["volume_mm3"])), features=["sphericity"], **options)
    assert np.log(bounds(fitted, 1, "volume_mm3")) == pytest.approx(bounds(logs, 1, "sphericity"))


def test_one_side_without_variation_takes_that_of_all():
    cohort = table(100, labels=[1]).assign(asymmetry=[0.0] * 60 + list(np.linspace(0, 1, 40)))
    fitted = fit_thresholds(cohort, organs=ORGANS, rule="deciles", features=["asymmetry"], votes=1, decile_factor=1)
    low, high = bounds(fitted, 1, "asymmetry")
    assert low == pytest.approx(-cohort["asymmetry"].std(ddof=0))
    assert high == pytest.approx(cohort["asymmetry"].quantile(0.9) / 1.2816)


def one_voxel_cohort(share):
    """Labels of which some are a single voxel, with the features of a voxel."""
    rng = np.random.default_rng(0)
    cohort = pd.DataFrame({"case": [f"p{n}" for n in range(200)], "label": 1})
    cohort["volume_mm3"] = np.exp(rng.normal(10, 0.2, 200))
    cohort["normalized_volume"], cohort["components"] = cohort["volume_mm3"] / 1e6, 1
    cohort["sphericity"], cohort["eccentricity"] = rng.normal(0.7, 0.03, 200), rng.normal(0.6, 0.05, 200)
    tiny = cohort.index < 200 * share
    columns = ["volume_mm3", "normalized_volume", "sphericity", "eccentricity"]
    cohort.loc[tiny, columns] = 27.0, 27e-6, 0.9, np.nan
    other = cohort.assign(label=3, volume_mm3=np.exp(rng.normal(10, 0.2, 200)), sphericity=0.7, eccentricity=0.6)
    third = other.assign(label=5)
    everything = pd.concat([cohort, other, third], ignore_index=True)
    return everything.assign(**{f"centroid_{axis}_mm": rng.normal(10 * everything["label"], 2) for axis in "xyz"}), tiny


def test_single_voxels_pass_the_papers_rule_once_they_fill_its_percentiles_and_never_the_default():
    organs = ORGANS | {5: "liver"}
    for share, missed in ((0.01, False), (0.05, True)):
        cohort, tiny = one_voxel_cohort(share)
        paper = judge(cohort, fit_thresholds(cohort, organs=organs))
        assert (paper["decision"][: len(tiny)][tiny] == "keep").all() == missed
        rule = {"rule": "deciles", "features": ["relative_volume", "sphericity"], "votes": 1, "decile_factor": 4.25}
        ours = judge(cohort, fit_thresholds(cohort, organs=organs, **rule))
        assert (ours["decision"][: len(tiny)][tiny] == "reject").all()
        assert (ours["decision"] == "reject").sum() < tiny.sum() + 5


def test_published_ranges_are_those_of_the_published_code():
    fitted = fit_thresholds(table(3), organs=ORGANS, rule="ranges")
    assert fitted.features == ["sphericity", "volume_mm3", "components"]
    assert fitted.votes == 1
    assert bounds(fitted, 1, "volume_mm3") == (100_000, 300_000)
    assert bounds(fitted, 1, "sphericity") == (0.3, np.inf)
    assert bounds(fitted, 1, "components") == (-np.inf, 3)
    assert bounds(fit_thresholds(table(3, labels=[1]), organs=ORGANS, rule="ranges"), 3, "volume_mm3")[0] == -np.inf


def test_only_the_voting_features_have_thresholds():
    fitted = fit_thresholds(table(), organs=ORGANS, features=["sphericity", "asymmetry"])
    assert np.isfinite(fitted.low).sum() == np.isfinite(fitted.high).sum() == 4
    assert fitted.features == ["sphericity", "asymmetry"]


def test_missing_values_do_not_count():
    cohort = table(120, labels=[1])
    cohort.loc[::2, "asymmetry"] = np.nan
    fitted = fit_thresholds(cohort, organs=ORGANS, features=["asymmetry"], votes=1)
    assert bounds(fitted, 1, "asymmetry") == pytest.approx(tuple(cohort["asymmetry"].quantile([0.02, 0.98])))


def test_organs_with_too_few_subjects_are_named_and_kept(caplog):
    cohort = pd.concat([table(50, labels=[1]), table(49, labels=[3])], ignore_index=True)
    with caplog.at_level(logging.WARNING):
        fitted = fit_thresholds(cohort, organs=ORGANS)
    assert "no thresholds for organs with fewer than 50 subjects: kidney_left (49)" in caplog.text
    assert np.isinf(fitted.low[1]).all()
    assert np.isfinite(fitted.low[0]).any()
    odd = pd.DataFrame({"label": [3], **{key: [1000000000.0] for key in MEASURED}})
    assert judge(odd, fitted)[["decision", "reason"]].to_numpy().tolist() == [
        ["keep", "no thresholds: too few subjects"]
    ]


def test_organ_never_seen_is_kept():
    fitted = fit_thresholds(table(60, labels=[1]), organs=ORGANS)
    decided = judge(table(1, labels=[3]), fitted)
    assert decided["decision"].tolist() == ["keep"]
    assert np.isnan(decided["sphericity_percentile"]).all()


def test_readable_thresholds_name_organs_and_hold_no_infinity():
    fitted = fit_thresholds(table(60, labels=[1]), organs=ORGANS)
    content = readable(fitted)
    assert (content["rule"], content["epsilon_percent"], content["subjects"]) == ("percentile", 2.0, 60)
    assert content["fingerprint"] == fitted.fingerprint
    assert content["votes"] == 2
    assert content["organs"]["1"]["organ"] == "spleen"
    assert content["organs"]["1"]["subjects"] == 60
    assert content["organs"]["1"]["sphericity"]["low"] < content["organs"]["1"]["sphericity"]["median"]
    assert content["organs"]["3"]["sphericity"] == {"low": None, "median": None, "high": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "sigma"}, "rule is 'sigma': give one of percentile, iqr, mad, deciles, ranges"),
        ({"rule": ["mad"]}, "rule is ['mad']: give one of percentile, iqr, mad, deciles, ranges"),
        ({"features": ["size"]}, "features is ['size']: give some of normalized_volume"),
        ({"features": ["sphericity"] * 2}, "features is ['sphericity', 'sphericity']: give some of normalized_volume"),
        ({"features": []}, "features is []: give some of normalized_volume"),
        ({"features": None}, "features is None: give some of normalized_volume"),
        ({"votes": 4}, "votes is 4, above the 3 of features: give 3 or less"),
        ({"votes": 0}, "votes is 0: give a whole number from 1"),
        ({"votes": 1.5}, "votes is 1.5: give a whole number from 1"),
        ({"epsilon_percent": 50}, "epsilon_percent is 50: give a number above 0"),
        ({"epsilon_percent": 0}, "epsilon_percent is 0: give a number above 0"),
        ({"epsilon_percent": float("nan")}, "epsilon_percent is nan: give a number above 0"),
        ({"epsilon_percent": 5e-324}, "the most frequent organ has 101 subjects, the rule needs 100000000"),
        ({"epsilon_percent": 0.5}, "the most frequent organ has 101 subjects, the rule needs 200"),
        ({"rule": "iqr", "iqr_factor": -1}, "iqr_factor is -1: give a number from 0"),
        ({"rule": "iqr", "iqr_factor": "x"}, "iqr_factor is 'x': give a number from 0"),
        ({"rule": "mad", "mad_factor": float("nan")}, "mad_factor is nan: give a number from 0"),
        ({"rule": "mad", "mad_factor": float("inf")}, "mad_factor is inf: give a number from 0"),
        ({"rule": "deciles", "decile_factor": -1}, "decile_factor is -1: give a number from 0"),
        ({"missing_percent": 0}, "missing_percent is 0: give a number above 0"),
        ({"missing_percent": 101}, "missing_percent is 101: give a number above 0"),
        ({"features": ["relative_x"], "votes": 1}, "features: relative_x need the columns case, volume_mm3, centroid_"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        fit_thresholds(table(), organs=ORGANS, **options)


def test_table_of_other_labels_is_refused():
    with pytest.raises(InputError, match=r"labels \[2, 9\] are not in the table of 2 organs"):
        fit_thresholds(table(60, labels=[1, 2, 9]), organs=ORGANS)


def test_fingerprint_of_a_cohort_changes_with_a_value_or_a_name_and_shows_neither():
    cohort = table(60).assign(case=[f"Smith{n % 60}" for n in range(120)])
    first = cohort_fingerprint(cohort)
    assert first == cohort_fingerprint(cohort.copy())
    assert len(first) == 64
    renamed = cohort.assign(case=cohort["case"].replace("Smith7", "Jones"))
    changed = cohort.assign(sphericity=cohort["sphericity"].where(cohort.index != 5, 0.5))
    assert len({first, cohort_fingerprint(renamed), cohort_fingerprint(changed), cohort_fingerprint(cohort[:-1])}) == 4


def test_fit_knows_its_options_and_its_cohort():
    cohort = table(60).assign(case=[f"Smith{n % 60}" for n in range(120)])
    about = fit_thresholds(cohort, organs=ORGANS, epsilon_percent=3, version="9.1").about
    assert {"rule": "percentile", "votes": 2, "epsilon_percent": 3, "version": "9.1"}.items() <= about.items()
    assert about["features"] == list(SHAPE)
    assert about["cohort"] == cohort_fingerprint(cohort)
    assert "Smith" not in str(about)
