from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.solf.fitting import fit_thresholds
from scripts.solf.tables import cohort_table, feature_table
from scripts.solf.thresholds import FEATURES, LEVELS, MEASURED, SHAPE, Thresholds, judge, summary

SIX = {1: "spleen", 2: "kidney_right", 3: "kidney_left", 5: "liver", 6: "stomach", 8: "adrenal_gland_right"}
PLACES = np.random.default_rng(5).uniform(-100, 100, (6, 3))
TWO = {1: "spleen", 3: "kidney_left"}


def thresholds(*, low=1.0, high=2.0, features=SHAPE, votes=2):
    voting = np.isin(FEATURES, features)
    shape = (len(TWO), len(FEATURES))
    return Thresholds(
        organs=TWO,
        low=np.where(voting, low, -np.inf) * np.ones(shape),
        high=np.where(voting, high, np.inf) * np.ones(shape),
        quantiles=(1 + LEVELS)[:, None, None] * np.ones(shape),
        subjects=np.full(len(TWO), 100),
        voting=voting,
        votes=votes,
    )


def row(label=1, **values):
    return pd.DataFrame({"label": [label], **{name: [values.get(name, 1.5)] for name in MEASURED}})


@pytest.mark.parametrize(
    ("values", "votes", "decision"),
    [
        ({}, 0, "keep"),
        ({"sphericity": 0.5}, 1, "keep"),
        ({"sphericity": 0.5, "eccentricity": 2.5}, 2, "reject"),
        ({"sphericity": 1.0, "eccentricity": 2.0}, 0, "keep"),
        ({"sphericity": np.nan, "eccentricity": np.nan}, 2, "reject"),
        ({"volume_mm3": 99.0, "components": 99.0}, 0, "keep"),
    ],
)
def test_two_features_outside_reject(values, votes, decision):
    decided = judge(row(**values), thresholds())
    assert decided["votes"].tolist() == [votes]
    assert decided["decision"].tolist() == [decision]


def test_organ_without_a_contralateral_one_gets_no_vote_for_asymmetry():
    rule = thresholds(features=("asymmetry", "sphericity"), votes=1)
    assert judge(row(asymmetry=np.nan), rule)["votes"].tolist() == [0]
    assert judge(row(asymmetry=-3), rule)["decision"].tolist() == ["reject"]


def test_reason_says_what_is_outside_and_by_which_threshold():
    decided = judge(row(normalized_volume=0.25, sphericity=np.nan, eccentricity=2.5), thresholds())
    assert decided["reason"].tolist() == [
        "normalized_volume 0.25 below 1; sphericity undefined, too few voxels; eccentricity 2.5 above 2"
    ]


def test_percentiles_are_ranks_in_the_cohort():
    decided = judge(pd.concat([row(sphericity=1.25), row(3, sphericity=7)], ignore_index=True), thresholds())
    assert decided["sphericity_percentile"].tolist() == pytest.approx([25, 100])


def people(count, *, seed=0, box=(-250, 250)):
    """Draw people of six organs with a field of view, as the table that a fit reads."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in range(count):
        shift = rng.normal(0, 20, 3)
        for label, place in zip(SIX, PLACES, strict=True):
            centre = place + shift + rng.normal(0, 3, 3)
            shape = {"sphericity": rng.normal(0.7, 0.02), "eccentricity": rng.normal(0.6, 0.02), "components": 1}
            rows.append({"case": f"p{case:03d}", "label": label, "volume_mm3": np.exp(rng.normal(10, 0.1)), **shape})
            rows[-1] |= {f"centroid_{axis}_mm": x for axis, x in zip("xyz", centre, strict=True)}
            rows[-1] |= {
                f"fov_{axis}_{end}_mm": mm for axis in "xyz" for end, mm in zip(("min", "max"), box, strict=True)
            }
    return pd.DataFrame(rows)


DECILES = {"rule": "deciles", "features": ["relative_volume", "relative_x"], "votes": 1, "decile_factor": 6.0}


@pytest.fixture(scope="module")
def six():
    return fit_thresholds(people(100), organs=SIX, **DECILES)


def test_organ_that_nearly_all_have_and_whose_place_is_shown_is_missing(six):
    case = people(3, seed=1)
    lacking = case[(case["case"] != "p001") | (case["label"] != 3)]
    decided = judge(lacking, six)
    assert decided["case"].tolist() == ["p000"] * 6 + ["p001"] * 6 + ["p002"] * 6
    row = decided[decided["decision"] == "missing"].iloc[0]
    assert (row["case"], row["label"], row["organ"], row["votes"]) == ("p001", 3, "kidney_left", 0)
    assert row[["relative_volume", "relative_x", "relative_x_percentile"]].isna().all()
    assert row["reason"] == "missing; 100 % of the cohort have it where the image shows its place"
    assert (decided["decision"] == "missing").sum() == 1
    assert decided.dtypes.equals(judge(case, six).dtypes)


def test_missing_organs_of_a_case_alone_are_those_of_its_cohort(six):
    case = people(3, seed=1)
    lacking = case[(case["case"] != "p001") | (case["label"] != 3)]
    together, alone = judge(lacking, six), judge(lacking[lacking["case"] == "p001"].drop(columns="case"), six)
    expected = together[together["case"] == "p001"].drop(columns="case").reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected)


def test_organ_outside_of_the_field_of_view_is_not_missing(six):
    case = people(1, seed=1)
    shown = case[case["label"] != 3]
    assert (judge(shown, six)["decision"] == "missing").sum() == 1
    place_mm = case.loc[case["label"] == 3, "centroid_z_mm"].item()
    for end, mm in (("min", place_mm + 30), ("max", place_mm - 30), ("max", place_mm + 1)):
        cut = shown.assign(**{f"fov_z_{end}_mm": mm})
        assert not (judge(cut, six)["decision"] == "missing").any()


@pytest.mark.parametrize(("share", "missing"), [(0.04, 1), (0.06, 0)])
def test_only_organs_that_enough_of_the_cohort_have_are_missing(share, missing):
    cohort = people(100)
    without = cohort[~((cohort["label"] == 3) & (cohort["case"] < f"p{round(100 * share):03d}"))]
    rule = fit_thresholds(without, organs=SIX, **DECILES)
    case = people(1, seed=1)
    assert (judge(case[case["label"] != 3], rule)["decision"] == "missing").sum() == missing
    assert (judge(without, rule)["decision"] == "missing").sum() == round(100 * share) * missing


def test_cases_whose_field_of_view_does_not_show_an_organ_do_not_count_against_it():
    """Half of the cohort shows another part of the body."""
    whole, cut = people(60), people(60, seed=3)
    low = np.sort(PLACES[:, 2])[0]
    lowest = list(SIX)[int(np.argmin(PLACES[:, 2]))]
    cut = cut[cut["label"] != lowest].assign(fov_z_min_mm=low + 40, case="q" + cut["case"])
    rule = fit_thresholds(pd.concat([whole, cut], ignore_index=True), organs=SIX, **DECILES)
    case = people(1, seed=1)
    assert judge(case[case["label"] != lowest], rule)["decision"].tolist().count("missing") == 1
    assert not (judge(cut, rule)["decision"] == "missing").any()


def test_tables_without_fields_of_view_get_no_missing_organs(six):
    case = people(1, seed=1)
    table = case[case["label"] != 3].drop(columns=[name for name in case if name.startswith("fov")])
    assert not (judge(table, six)["decision"] == "missing").any()


def test_small_cohort_says_nothing_about_missing_organs():
    rule = fit_thresholds(people(19), organs=SIX, rule="ranges")
    case = people(1, seed=1)
    assert not (judge(case[case["label"] != 3], rule)["decision"] == "missing").any()


@pytest.mark.parametrize("wrong", ["missing", "merged", "truncated"])
def test_wrong_organ_leaves_the_decisions_about_the_others(six, wrong):
    cases = people(40, seed=2)
    liver = cases["label"] == 5
    changed = cases.assign(volume_mm3=cases["volume_mm3"].mask(liver, 8 * cases["volume_mm3"]))
    if wrong == "missing":
        changed = cases[~liver]
    elif wrong == "truncated":
        changed = cases.assign(
            volume_mm3=cases["volume_mm3"].mask(liver, 0.2 * cases["volume_mm3"]),
            centroid_z_mm=cases["centroid_z_mm"].mask(liver, cases["centroid_z_mm"] + 60),
        )
    others = judge(changed, six).query("label != 5")["decision"]
    assert (others != "keep").sum() <= 1


def test_relative_feature_without_its_columns_is_refused(six):
    with pytest.raises(InputError, match="relative_volume needs the columns volume_mm3, centroid_x_mm"):
        judge(people(1).drop(columns="centroid_x_mm"), six)


def test_fingerprint_differs_between_fits(six):
    again = fit_thresholds(people(100), organs=SIX, **DECILES)
    assert again.fingerprint == six.fingerprint
    others = [fit_thresholds(people(100, seed=9), organs=SIX, **DECILES), replace(six, votes=2)]
    others += [replace(six, missing_percent=90.0), replace(six, organs=SIX | {8: "gland"}), replace(six, about={})]
    assert len({found.fingerprint for found in (six, *others)}) == 6


def test_summary_names_rule_cohort_and_version(six):
    line = summary(replace(six, about={**six.about, "version": "1.2.3"}))
    assert "rule deciles, 1 of relative_volume, relative_x, fitted to 100 cases (cohort " in line
    assert line.endswith(f"(cohort {six.about['cohort'][:16]}) by version 1.2.3")


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    cohort = pd.DataFrame({"label": rng.choice([1, 3], 400), **{f: rng.lognormal(size=400) for f in MEASURED}})
    fitted = fit_thresholds(cohort, organs=TWO)
    shuffled = cohort.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(judge(shuffled, fitted).sort_index(), judge(cohort, fitted))


def test_known_errors_are_rejected_and_most_others_kept(cohort, fitted):
    decided = judge(cohort_table(cohort.items(), ORGANS), fitted).set_index(["case", "organ"])["decision"]
    assert decided["s05", "kidney_right"] == decided["s06", "kidney_left"] == "reject"
    assert (decided == "reject").mean() < 0.1


def test_a_case_alone_gets_the_same_decisions_as_in_its_cohort(cohort, fitted):
    together = judge(cohort_table(cohort.items(), ORGANS), fitted)
    alone = judge(feature_table(cohort["s05"], ORGANS), fitted)
    expected = together[together["case"] == "s05"].drop(columns="case").reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected)
