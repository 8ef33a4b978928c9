import json

import numpy as np
import pandas as pd
import pytest

from benchmarks.solf.cohorts import Cohort, measure_person, measure_phantom
from benchmarks.solf.real_errors import damage
from benchmarks.solf.real_people import DATA, Atlas, draw_person, torso
from benchmarks.solf.scores import decided, dice_means, rows_of, score, score_kind
from benchmarks.solf_quality import CONFIGS, RESULTS, default_rule, rules

NAN = np.nan
#               right labels                       leak  leak   swapped  missing; called missing
KINDS = [*["", "", "", "", "", ""], "leak", "leak", "swapped", "swapped", "missing", "missing", ""]
REJECTED = [*[0, 0, 0, 0, 1, 1], 1, 1, 1, 0, 1, 0, 1]
DICE = [*[1.0, 1.0, 1.0, 1.0, 0.9, 0.9], 0.6, 0.4, 0.0, 0.2, NAN, NAN, NAN]
ROWS = pd.DataFrame({"kind": KINDS, "rejected": np.array(REJECTED, dtype=bool), "dice": DICE})
real = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real label maps, is absent")


def test_score_counts_hits_misses_and_false_rejections():
    assert score(ROWS) == {
        "precision": 4 / 7,
        "recall": 4 / 6,
        "f1": pytest.approx(2 * (4 / 7) * (4 / 6) / (4 / 7 + 4 / 6)),
        "false_rejections": 2 / 6,
        "false_missing": 1,
    }


def test_score_without_rejections_has_no_precision():
    scores = score(ROWS.assign(rejected=False))
    assert np.isnan(scores["precision"])
    assert (scores["recall"], scores["f1"], scores["false_rejections"]) == (0, 0, 0)


def test_kind_stands_for_all_errors():
    # 6 errors: all 6 found if all were leaks, 3 if all were swapped; 3 false rejections
    assert score_kind(ROWS, "leak") == {"precision": 6 / 9, "recall": 1, "f1": 12 / 15}
    assert score_kind(ROWS, "missing") == {"precision": 3 / 6, "recall": 0.5, "f1": 6 / 12}


def test_dice_of_kept_labels_and_with_rejected_ones_missing():
    means = dice_means(ROWS)
    assert means["dice_before"] == pytest.approx(7.0 / 10)
    assert means["dice_kept"] == pytest.approx(4.2 / 5)
    assert means["dice_missing_as_0"] == pytest.approx(4.2 / 10)


def test_measured_labels_carry_the_dice_and_kind_of_their_errors():
    truth = pd.DataFrame(measure_phantom((7, 0, 0.2))[-1], columns=["label", "kind", "dice"])
    assert ((truth["dice"] < 0.9) == (truth["kind"] != "")).all()
    assert (truth["kind"] != "").any()
    clean = pd.DataFrame(measure_phantom((7, 0, 0.0))[-1], columns=["label", "kind", "dice"])
    assert (clean["dice"] == 1).all()
    assert (clean["kind"] == "").all()


def test_rules_judge_what_they_are_fitted_to_and_others():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"case": [f"p{n}" for n in range(200)], "label": 1})
    table["normalized_volume"] = rng.uniform(1, 2, 200)
    table.loc[0, "normalized_volume"] = 9.0
    truth = table[["case", "label"]].assign(kind="", dice=1.0)
    truth.loc[0, ["kind", "dice"]] = "leak", 0.5
    cohort = Cohort(table, truth, {1: "spleen"})
    rule = {"features": ["normalized_volume"], "votes": 1, "epsilon_percent": 1.0}
    own = decided(rule, fit=cohort, on=cohort)
    assert own["rejected"].sum() == 4  # 1 % of 200 at each end
    assert own.set_index("case").loc["p0", "rejected"]
    rows = rows_of("name", rule, "cohort", cohort, None)
    assert [(row["kind"], row["errors"]) for row in rows] == [("all", 1), ("leak", 1)]
    assert rows[0]["precision"] == 1 / 4
    assert rows[1]["median_dice"] == 0.5
    assert not decided(rules()["no filter"], fit=cohort, on=cohort)["rejected"].any()


@real
def test_person_of_real_shape_has_the_organs_of_the_atlas_elsewhere():
    atlas = torso()
    one, other = (draw_person(atlas, np.random.default_rng(seed)) for seed in (0, 1))
    assert one.shape == atlas.label.shape
    assert len(set(np.unique(one)) & set(np.unique(atlas.label))) > 50
    assert 0.02 < (one != other).mean() < 0.5


@real
def test_person_without_errors_has_none():
    *_, truth = measure_person(("torso", 3, 0, 0.0))
    assert {row[1:] for row in truth} == {("", 1.0)}


def boxes():
    """A map of eight boxes side by side."""
    label = np.zeros((48, 20, 20), np.uint8)
    for n in range(8):
        label[6 * n : 6 * n + 6, 5:15, :] = n + 1
    return Atlas(label, np.eye(4), {n + 1: f"box {n + 1}" for n in range(8)}, 1.0)


def test_every_error_of_a_map_is_known():
    atlas, seen = boxes(), set()
    for seed in range(60):
        found = damage(atlas.label, atlas, rate=0.3, rng=np.random.default_rng(seed))
        present = set(np.unique(found.label).tolist()) - {0}
        assert present == set(found.dice)
        assert {label for label, kind in found.kinds.items() if kind == "missing"}.isdisjoint(present)
        assert {label for label, dice in found.dice.items() if dice < 0.9} == set(found.kinds) & present
        if found.label.shape == atlas.label.shape:
            assert set(range(1, 9)) - present <= set(found.kinds)
        seen |= set(found.kinds.values())
    assert seen == {"missing", "swapped", "merged", "islands", "eroded", "shifted", "truncated", "overwritten"}


def test_truncated_map_lies_where_it_did():
    atlas = boxes()
    for seed in range(200):
        found = damage(atlas.label, atlas, rate=1e-9, rng=np.random.default_rng(seed))
        if found.label.shape != atlas.label.shape:
            first = round(found.affine[2, 3])
            part = atlas.label[:, :, first : first + found.label.shape[2]]
            np.testing.assert_array_equal(found.label, part)
            return
    pytest.fail("no truncated map")


def test_default_rule_is_the_one_that_the_results_tell_of():
    """At most 1.5 % of the correct labels are rejected, and no other rule at that rate has a higher F1."""
    table = pd.read_csv(RESULTS / "solf_quality.csv")
    main = table[(table["kind"] == "all") & table["cohort"].isin(["torso", "brain"])]
    low = main[main["false_rejections"] <= 0.015]
    for _, rows in low.groupby("cohort"):
        assert rows.loc[rows["f1"].idxmax(), "rule"] == "default"
    text = (RESULTS / "solf_quality.md").read_text()
    assert ", ".join(f"{name}={value!r}" for name, value in default_rule().items()) in text


def test_paper_is_one_config_away():
    paper = json.loads((CONFIGS / "paper.json").read_text())
    assert paper == {
        "rule": "percentile",
        "features": ["normalized_volume", "sphericity", "eccentricity"],
        "votes": 2,
        "epsilon_percent": 2.0,
    }
