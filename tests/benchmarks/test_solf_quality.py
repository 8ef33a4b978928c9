import numpy as np
import pandas as pd
import pytest

from benchmarks.solf_quality import RULES, dice_means, measure, rejections, rows_of, score, score_kind

#             right labels             leak      swapped
KINDS = np.array(["", "", "", "", "", "", "leak", "leak", "swapped", "swapped"])
REJECTED = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 0], dtype=bool)
DICE = np.array([1.0, 1.0, 1.0, 1.0, 0.9, 0.9, 0.6, 0.4, 0.0, 0.2])


def test_score_counts_hits_misses_and_false_rejections():
    assert score(REJECTED, KINDS != "") == {
        "precision": 3 / 5,
        "recall": 3 / 4,
        "f1": pytest.approx(2 * 0.6 * 0.75 / 1.35),
        "false_rejections": 2 / 6,
    }


def test_score_without_rejections_has_no_precision():
    scores = score(np.zeros(10, dtype=bool), KINDS != "")
    assert np.isnan(scores["precision"])
    assert (scores["recall"], scores["f1"], scores["false_rejections"]) == (0, 0, 0)


def test_kind_stands_for_all_errors():
    # 4 errors: all 4 found if all were leaks, 2 if all were swapped; 2 false rejections
    assert score_kind(REJECTED, KINDS, "leak") == {"precision": 4 / 6, "recall": 1, "f1": 8 / 10}
    assert score_kind(REJECTED, KINDS, "swapped") == {"precision": 2 / 4, "recall": 0.5, "f1": 4 / 8}


def test_dice_of_kept_labels_and_with_rejected_ones_missing():
    means = dice_means(REJECTED, DICE)
    assert means["dice_before"] == pytest.approx(7.0 / 10)
    assert means["dice_kept"] == pytest.approx(4.2 / 5)
    assert means["dice_missing_as_0"] == pytest.approx(4.2 / 10)


def test_measured_labels_carry_the_dice_and_kind_of_their_errors():
    corrupted, clean = measure((7, 0), rates=(0.2, 0.0))
    assert (clean["dice"] == 1).all()
    assert (clean["kind"] == "").all()
    assert ((corrupted["dice"] < 0.9) == (corrupted["kind"] != "")).all()
    assert (corrupted["kind"] != "").any()


def test_rules_judge_what_they_learn_from_and_others():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"label": 1, "normalized_volume": rng.uniform(1, 2, 200), "dice": 1.0, "kind": ""})
    table.loc[0, ["normalized_volume", "dice", "kind"]] = 9.0, 0.5, "leak"
    rule = {"features": ["normalized_volume"], "votes": 1, "epsilon_percent": 1.0}
    (own, twice) = rejections(rule, fit=table, on=[table, pd.concat([table, table])])
    assert own.sum() == 4  # 1 % of 200 at each end
    assert own[0]
    assert twice.sum() == 8
    rows = rows_of("name", rule, {0.05: table}, table[1:])
    assert [(row["kind"], row["errors"]) for row in rows] == [("all", 1), ("leak", 1)]
    assert rows[0]["precision"] == 1 / 4
    assert rows[1]["median_dice"] == 0.5
    assert rows[0]["clean_cohort_rejected"] == 3 / 199


def test_no_filter_rejects_nothing():
    table = pd.DataFrame({"label": [1, 2]})
    assert not rejections(RULES["no filter"], fit=table, on=[table])[0].any()
