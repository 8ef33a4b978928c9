import logging
import re

import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.solf.fitting import fit_thresholds
from scripts.solf.tables import cohort_table
from scripts.solf.thresholds import SHAPE, judge
from scripts.solf.tuning import (
    Candidate,
    best,
    candidates,
    cross_validate,
    fold_of_cases,
    require_enough,
)

SETS = (("normalized_volume",), SHAPE, (*SHAPE, "components", "relative_volume", "relative_x"))
FACTORS = {"percentile": (4.0, 5.0), "iqr": (2.0,), "mad": (4.0,), "deciles": (4.0,)}
CURRENT = {"rule": "percentile", "epsilon_percent": 5.0, "features": list(SHAPE), "votes": 2}


@pytest.fixture(scope="module")
def table(cohort):
    return cohort_table(cohort.items(), ORGANS)


@pytest.fixture(scope="module")
def judged(table):
    """Verdicts about half of the cases; wrong are all labels of s05 and s06, one label each of four others."""
    judged = table.loc[table["case"] < "s30", ["case", "label"]]
    wrong = judged["case"].isin(["s05", "s06"]) | (
        judged["case"].isin(["s01", "s11", "s12", "s21"]) & (judged["label"] == 2)
    )
    return judged.assign(wrong=wrong)


@pytest.fixture(scope="module")
def tried():
    return candidates(feature_sets=SETS, factors=FACTORS, current=CURRENT)


def test_candidates_are_all_combinations_once_and_the_current_rule_comes_first(tried):
    assert tried[0] == Candidate("percentile", 5.0, SHAPE, 2)
    assert len(tried) == len(set(tried)) == 5 * (1 + 3 + 3)
    assert candidates(feature_sets=SETS, factors={"mad": [4]}, current={"rule": "ranges"})[0].rule == "mad"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factors": {"sigma": [1.0]}}, "factors names the rule 'sigma'; give some of percentile, iqr, mad, deciles."),
        ({"factors": {"mad": [-1.0]}}, "mad_factor is -1.0: give a number from 0 to 1000"),
        ({"feature_sets": [["size"]]}, "features is ['size']: give some of normalized_volume, sphericity"),
    ],
)
def test_bad_candidates_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        candidates(**{"feature_sets": SETS, "factors": FACTORS, "current": CURRENT, **options})


def test_folds_hold_about_as_many_wrong_labels_and_depend_on_the_seed(judged):
    fold = fold_of_cases(judged, folds=3, seed=0)
    wrong = judged.groupby("case")["wrong"].sum().groupby(fold).sum()
    assert sorted(fold.value_counts()) == [10, 10, 10]
    assert wrong.sum() == 10
    assert wrong.min() >= 2
    assert fold.to_dict() == fold_of_cases(judged.sample(frac=1, random_state=1), folds=3, seed=0).to_dict()
    assert fold.to_dict() != fold_of_cases(judged, folds=3, seed=1).to_dict()


def test_scores_are_those_of_fitting_and_judging_each_candidate_anew(table, judged, tried):
    """The search fits once for many candidates; here each is fitted by itself."""
    scores = cross_validate(table, judged, organs=ORGANS, tried=tried, folds=3, seed=0)
    assert list(scores.index) == list(range(len(tried)))
    fold = fold_of_cases(judged, folds=3, seed=0)
    differing = set()
    for n, candidate in enumerate(tried):
        found = []
        for k in range(3):
            test = table["case"].isin(fold.index[fold == k])
            thresholds = fit_thresholds(table[~test], organs=ORGANS, **candidate.options)
            found.append(judge(table[test], thresholds).merge(judged, on=["case", "label"]))
        decisions = pd.concat(found)
        rejected, wrong = decisions["decision"] == "reject", decisions["wrong"].astype(bool)
        hits = (rejected & wrong).sum()
        assert scores.loc[n, "recall"] == pytest.approx(hits / 10), candidate
        assert scores.loc[n, "f1"] == pytest.approx(2 * hits / (rejected.sum() + 10)), candidate
        assert scores.loc[n, "false_rejections"] == pytest.approx((rejected & ~wrong).sum() / (~wrong).sum())
        differing.add(round(scores.loc[n, "f1"], 6))
    assert len(differing) > 5


def test_candidates_that_need_more_cases_than_a_fold_leaves_are_left_out(table, judged, caplog):
    wanted = [Candidate("percentile", 2.0, SHAPE, 2), Candidate("mad", 4.0, SHAPE, 1)]
    with caplog.at_level(logging.INFO):
        scores = cross_validate(table, judged, organs=ORGANS, tried=wanted, folds=2)
    assert scores["rule"].tolist() == ["mad"]
    assert scores.index.tolist() == [1]
    assert "1 of 2 candidates need more cases than a fold leaves" in caplog.text
    with pytest.raises(
        InputError, match=r"no rule can be fitted to the 60 cases less a fold of 2: give more label maps"
    ):
        cross_validate(table, judged, organs=ORGANS, tried=wanted[:1], folds=2)


def test_best_rule_has_few_false_rejections_and_of_equal_ones_the_fewest_features():
    scores = pd.DataFrame(
        {
            "f1": [0.9, 0.8, 0.8, 0.8 + 1e-15, 0.7],
            "false_rejections": [0.02, 0.01, 0.005, 0.01, 0.0],
            "features": ["a", "a b", "a b", "a b c", "a"],
        },
        index=[3, 4, 6, 8, 9],
    )
    assert best(scores, max_false_rejections=0.015) == 6
    assert best(scores, max_false_rejections=0.02) == 3
    with pytest.raises(
        InputError, match=r"max_false_rejections is 0\.001: all 4 rules reject more .*, 0\.005 at least;"
    ):
        best(scores[:4], max_false_rejections=0.001)


@pytest.mark.parametrize("counts", [(19, 67, 9), (20, 66, 9), (20, 67, 4)])
def test_too_few_judged_labels_are_refused_with_the_number_needed(counts):
    wrong, right, cases = counts
    require_enough(wrong=20, right=67, cases=5, folds=5, max_false_rejections=0.015)
    with pytest.raises(InputError) as error:
        require_enough(wrong=wrong, right=right, cases=cases, folds=5, max_false_rejections=0.015)
    assert str(error.value) == (
        f"too few labels to choose a rule by: {wrong} wrong labels in {cases} cases and {right} right ones; 5 folds "
        "and at most 1.5 % false rejections need 20 wrong ones in at least 5 cases and 67 right ones: review more, or "
        "lower folds or raise max_false_rejections."
    )
