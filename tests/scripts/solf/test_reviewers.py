import numpy as np
import pandas as pd
import pytest

from scripts.common.organs import ORGANS
from scripts.solf.reviewers import agreement, cohens_kappa, conflicts


def answers(both, one_only, other_only, neither):
    """Two arrays of yes and no with these counts."""
    pairs = (
        [(True, True)] * both + [(True, False)] * one_only + [(False, True)] * other_only + [(False, False)] * neither
    )
    return np.array(pairs).T


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        ((40, 9, 6, 45), 0.70),
        ((80, 10, 5, 5), 0.32),
    ],
)
def test_kappa_equals_published_values(counts, kappa):
    """Feinstein and Cicchetti. High agreement but low kappa: I. J Clin Epidemiol 1990;43:543-549."""
    assert cohens_kappa(*answers(*counts)) == pytest.approx(kappa, abs=0.005)


def test_kappa_does_not_exist_if_both_always_give_the_same_answer():
    assert np.isnan(cohens_kappa(*answers(9, 0, 0, 0)))
    assert np.isnan(cohens_kappa(np.array([]), np.array([])))


@pytest.fixture
def verdicts():
    rows = [
        *(("p1", n, "alice", v) for n, v in zip(range(1, 7), "aaarra", strict=True)),
        *(("p1", n, "bob", v) for n, v in zip(range(1, 6), "aararr"[:5], strict=True)),
        ("p2", 5, "carol", "r"),
    ]
    table = pd.DataFrame(rows, columns=["case", "label", "reviewer", "verdict"])
    words = {"a": "accept", "r": "reject"}
    return table.assign(
        verdict=table["verdict"].map(words),
        organ=table["label"].map(ORGANS),
        reviewed_at=pd.Timestamp("2026", tz="UTC"),
    )


def test_pairs_of_reviewers_are_compared_over_the_labels_that_both_judged(verdicts):
    table = agreement(verdicts)
    assert table[["reviewer_1", "reviewer_2", "labels", "agreed"]].to_numpy().tolist() == [
        ["alice", "bob", 5, 3],
        ["alice", "carol", 0, 0],
        ["bob", "carol", 0, 0],
    ]
    assert table["kappa"][0] == pytest.approx((3 / 5 - 13 / 25) / (1 - 13 / 25))
    assert table["kappa"][1:].isna().all()


def test_labels_about_which_reviewers_differ_are_listed(verdicts):
    table = conflicts(verdicts)
    assert table.to_numpy().tolist() == [
        ["p1", 3, "kidney_left", "alice", "bob", ""],
        ["p1", 4, "gallbladder", "bob", "alice", ""],
    ]
    assert conflicts(verdicts[verdicts["reviewer"] == "alice"]).empty
