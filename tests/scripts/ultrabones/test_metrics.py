import math

import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.ultrabones.metrics import TOLERANCES_MM, VISIBLE_FROM, summarise, surface_scores


def masks(*, seed=0, size=(20, 24), share=0.03):
    generator = np.random.default_rng(seed)
    return generator.random(size) < share, generator.random(size) < share, generator.random(size)


def distances_mm(points, others, spacing_mm):
    """By brute force."""
    points, others = (np.argwhere(mask) * spacing_mm for mask in (points, others))
    return np.sqrt(((points[:, None] - others[None]) ** 2).sum(-1)).min(1)


@pytest.mark.parametrize("spacing_mm", [(1, 1), (0.17, 0.2), (0.25, 0.05)])
@pytest.mark.parametrize("official", [False, True])
def test_scores_are_those_of_all_pairs_of_pixels(spacing_mm, official):
    pred, label, _ = masks()
    rows = surface_scores(pred, label, spacing_mm=spacing_mm, official=official)
    to_label, to_pred = distances_mm(pred, label, spacing_mm), distances_mm(label, pred, spacing_mm)
    assert [row["tolerance_mm"] for row in rows] == list(TOLERANCES_MM)
    for row in rows:
        limit = row["tolerance_mm"] + (-1e-6 if official else 1e-6)
        precision, recall = np.mean(to_label <= limit), np.mean(to_pred <= limit)
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
        assert (row["precision"], row["recall"]) == (precision, recall)
        assert row["f1"] == pytest.approx(expected)
        assert row["pred_to_label_mm"] == pytest.approx(to_label.mean())
        assert row["label_to_pred_mm"] == pytest.approx(to_pred.mean())


def test_pixels_taller_than_wide_count_in_mm():
    label = np.zeros((9, 9), dtype=bool)
    label[4, 4] = True
    for axis, distance in ((0, 0.5), (1, 0.2)):
        (row, _) = surface_scores(np.roll(label, 1, axis), label, spacing_mm=(0.5, 0.2), tolerances_mm=[0.2, 1])
        assert row["pred_to_label_mm"] == pytest.approx(distance)
        assert row["f1"] == (1 if axis else 0)


def test_tolerance_itself_is_accepted_but_not_in_the_official_scores():
    label = np.zeros((9, 9), dtype=bool)
    label[4] = True
    pred = np.roll(label, 3, axis=0)
    accepted = surface_scores(pred, label, spacing_mm=(0.1, 0.1), tolerances_mm=[0.3])
    assert accepted[0]["recall"] == 1
    assert surface_scores(pred, label, spacing_mm=(0.1, 0.1), tolerances_mm=[0.3], official=True)[0]["recall"] == 0
    assert surface_scores(label, label, spacing_mm=(1, 1), tolerances_mm=[0], official=True)[0]["precision"] == 0


def test_visible_and_invisible_pixels_are_scored_by_themselves():
    pred, label, image = masks(share=0.2)
    image[0, 0] = VISIBLE_FROM
    rows = surface_scores(pred, label, spacing_mm=(1, 1), image=image, tolerances_mm=[1])
    visible = image >= VISIBLE_FROM
    for row, where in zip(rows, [np.ones_like(visible), visible, ~visible], strict=True):
        (alone,) = surface_scores(pred & where, label & where, spacing_mm=(1, 1), tolerances_mm=[1])
        assert row | {"group": "all"} == alone
    assert [row["group"] for row in rows] == ["all", "visible", "invisible"]


@pytest.mark.parametrize(("pred", "label", "kind"), [(0, 1, "missed"), (1, 0, "spurious"), (0, 0, "both")])
def test_empty_masks_are_counted_and_the_official_scores_leave_them_out(pred, label, kind):
    images = [np.full((4, 4), value) for value in (pred, label)]
    (row,) = surface_scores(*images, spacing_mm=(1, 1), tolerances_mm=[1])
    assert row["empty"] == kind
    scores = [row[name] for name in ("precision", "recall", "f1")]
    assert all(math.isnan(score) if kind == "both" else score == 0 for score in scores)
    assert math.isnan(row["pred_to_label_mm"])
    assert surface_scores(*images, spacing_mm=(1, 1), official=True) == []


def test_group_that_is_empty_in_one_mask_is_nan_in_the_official_scores_alone():
    pred, label, image = np.eye(4) > 0, np.eye(4) > 0, np.zeros((4, 4))
    image[0, 0] = 1
    pred[0, 0] = False
    ours, official = (
        surface_scores(pred, label, spacing_mm=(1, 1), image=image, tolerances_mm=[1], official=mode)[1]
        for mode in (False, True)
    )
    assert (ours["group"], ours["empty"], ours["recall"]) == ("visible", "missed", 0)
    assert math.isnan(official["recall"])


def test_summary_means_over_images_and_counts_those_that_are_empty():
    line, none = np.eye(4) > 0, np.zeros((4, 4))
    rows = []
    for pred, label in ((line, line), (none, line), (line, none), (none, none)):
        rows += surface_scores(pred, label, spacing_mm=(1, 1), image=np.ones((4, 4)), tolerances_mm=[1, 2])
    table = summarise(pd.DataFrame(rows))
    assert table["group"].tolist() == ["all", "all", "visible", "visible", "invisible", "invisible"]
    first = table.iloc[0]
    assert (first["n"], first["n_missed"], first["n_spurious"], first["n_both_empty"]) == (4, 1, 1, 1)
    assert first["f1"] == pytest.approx(1 / 3)
    assert first["pred_to_label_mm"] == 0
    assert table.iloc[-1]["n_both_empty"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.ones((4, 5))}, r"pred \(4, 4\), label \(4, 5\): give \(H, W\) on one grid"),
        ({"pred": np.ones(4), "label": np.ones(4)}, "on one grid"),
        ({"spacing_mm": (1, 0)}, r"spacing_mm is \(1, 0\): give height and width"),
        ({"spacing_mm": (1, 1, 1)}, "give height and width of a pixel"),
        ({"tolerances_mm": [-1]}, r"tolerances_mm is \[-1\]: give numbers of 0 mm or more"),
        ({"tolerances_mm": []}, "give numbers of 0 mm or more"),
        ({"image": np.full((4, 4), 107)}, "intensities are 107 to 107: give an image scaled to 0..1"),
    ],
)
def test_bad_input_has_one_clear_error(changes, message):
    given = {"pred": np.ones((4, 4)), "label": np.ones((4, 4)), "spacing_mm": (1, 1), **changes}
    with pytest.raises(InputError, match=message):
        surface_scores(given.pop("pred"), given.pop("label"), **given)
