import numpy as np
import pandas as pd
import pytest

from scripts.common.organs import ORGANS
from scripts.solf.fitting import fit_thresholds
from scripts.solf.tables import cohort_table, feature_table
from scripts.solf.thresholds import FEATURES, LEVELS, SHAPE, Thresholds, judge

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
    return pd.DataFrame({"label": [label], **{name: [values.get(name, 1.5)] for name in FEATURES}})


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


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    cohort = pd.DataFrame({"label": rng.choice([1, 3], 400), **{f: rng.lognormal(size=400) for f in FEATURES}})
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
