import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.solf.report.summary import BINS, Limits, Summary, plain
from tests.scripts.solf.report.test_write import BOUNDS, FEATURES, THRESHOLDS, decision_table, received, write


def limits_of(features, votes, organs):
    return Limits.read({"features": features, "votes": votes, "organs": organs})


def test_margin_is_the_share_by_which_thresholds_would_have_to_move():
    limits = Limits.read(THRESHOLDS)
    values = np.array([[0.38, 0.92], [0.38, 0.96], [0.0, 0.89], [0.5, 0.8], [np.nan, 0.95], [np.nan, np.nan]])
    margins = limits.margins(np.zeros(6, dtype=int), values)
    assert np.allclose(margins[:4], [0.1, 0.1, -0.05, -0.5])
    assert np.isneginf(margins[4:]).all()


@pytest.mark.parametrize("share", [-0.02, 0.02])
def test_decision_changes_when_thresholds_move_by_the_margin(share):
    """The margin of two features' votes, compared with counting votes after moving the thresholds."""
    limits, rng = Limits.read(THRESHOLDS), np.random.default_rng(0)
    values = rng.normal([0.5, 0.8], 0.15, (200, 2))
    margins = limits.margins(np.zeros(200, dtype=int), values)
    low, high = ([BOUNDS[f][n] for f in FEATURES] for n in (0, 2))
    moved = (margins + share)[:, None] * 0.2
    votes = ((values < low - moved) | (values > high + moved)).sum(axis=1)
    assert ((votes >= 2) == (share < 0)).all()


def test_margin_of_a_single_threshold_counts_from_the_median():
    bounds = {"low": None, "median": 1.0, "high": 3.0}
    flat = {"low": 2.0, "median": 2.0, "high": 2.0}
    none = {"low": None, "median": None, "high": None}
    limits = limits_of(
        ["components"], 1, {"7": {"components": bounds}, "8": {"components": flat}, "9": {"components": none}}
    )
    margins = limits.margins(limits.rows(np.array([7, 7, 8, 9])), np.array([[5.0], [1.0], [4.0], [1.0]]))
    assert margins.tolist() == [0.5, -0.5, 1.0, -np.inf]


def test_unknown_label_is_refused():
    with pytest.raises(InputError, match="the thresholds lack label 5; give those that"):
        Limits.read(THRESHOLDS).rows(np.array([2, 5]))


def test_histograms_count_every_label_once(tmp_path):
    table = decision_table()
    distributions = received(write(tmp_path, table), "distributions")
    for label in (2, 3, 66):
        own = table[(table["label"] == label) & (table["decision"] != "missing")]
        for one, (name, (low, median, high)) in zip(distributions[str(label)], BOUNDS.items(), strict=True):
            assert (one["low"], one["median"], one["high"]) == (low, median, high)
            inner = np.linspace(one["start"], one["stop"], BINS + 1)
            edges = np.concatenate([[-np.inf], inner, [np.inf]])
            for kind in ("kept", "rejected"):
                rejected = own["decision"] == "reject"
                values = own[name][rejected if kind == "rejected" else ~rejected].dropna()
                expected = np.array([((values >= a) & (values < b)).sum() for a, b in zip(edges, edges[1:])])  # noqa: B905, RUF007
                assert np.abs(np.array(one[kind]) - expected).sum() <= 2  # rounded edges
                assert sum(one[kind]) == len(values)


def test_organ_without_thresholds_has_no_histogram(tmp_path):
    bare = {**THRESHOLDS, "organs": {**THRESHOLDS["organs"], "2": {"organ": "kidney_right"}}}
    one = received(write(tmp_path, decision_table(), thresholds=bare), "distributions")["2"][0]
    assert one["start"] is None
    assert sum(one["kept"]) == 0


def test_ordinary_organ_is_the_kept_one_nearest_to_the_medians():
    limits = Limits.read(THRESHOLDS)
    summary = Summary(limits)
    rows = [("a", 2, 0.52, 0.81, "keep"), ("b", 2, 0.5, 0.8, "reject"), ("c", 2, 0.505, 0.79, "keep")]
    rows += [("d", 2, 0.5, np.nan, "keep"), ("d", 3, np.nan, np.nan, "missing")]
    table = pd.DataFrame(rows, columns=["case", "label", *FEATURES, "decision"]).assign(reason="", margin=0.0)
    for _, chunk in table.groupby("case"):
        summary.add(chunk)
    assert summary.ordinary == {2: "c"}
    assert summary.rejected_of({"b", "c"}) == {"b": {2}}


def test_numbers_have_four_digits():
    values = [0.0, 9.9996, 0.00099996, -123456.0, 1e-30, 7.0, np.nan, np.inf, 0.1234567]
    assert plain(np.array(values)) == [0, 10, 0.001, -123500, 0, 7, None, None, 0.1235]
