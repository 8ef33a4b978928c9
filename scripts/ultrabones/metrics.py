"""Scores of a segmented bone surface: how much of it lies near the label, and how much of the label is near it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt

from scripts.common.errors import InputError

TOLERANCES_MM = tuple(step / 10 for step in range(21))
GROUPS = ("all", "visible", "invisible")
VISIBLE_FROM = 107 / 255
"""Least intensity, of 0..1, of the pixels that count as visible."""
SCORE_COLUMNS = ("group", "tolerance_mm", "precision", "recall", "f1", "pred_to_label_mm", "label_to_pred_mm", "empty")
_SCORES = ("precision", "recall", "f1")
_DISTANCES = ("pred_to_label_mm", "label_to_pred_mm")
_EMPTY_COUNTS = {"n_missed": "missed", "n_spurious": "spurious", "n_both_empty": "both"}


def surface_scores(
    pred: np.ndarray,
    label: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    image: np.ndarray | None = None,
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
    official: bool = False,
) -> list[dict[str, Any]]:
    """Score one image.

    - `precision`: share of the predicted pixels that are within the tolerance of the label; `recall`: share of the
      label's pixels that are within it of the prediction; `f1`: their harmonic mean.
    - `pred_to_label_mm`, `label_to_pred_mm`: mean distance of the pixels of one from the nearest of the other: the two
      directions of the chamfer distance.
    - `empty`: "missed", the label has bone and the prediction none; "spurious", the other way round; "both", neither
      has; else "". Of one that is missed or spurious, precision, recall and F1 are 0; of both, NaN. Distances are NaN.

    Distances run from centre to centre. Where both are bands, as the target of the training, scores at less than the
    bands' width flatter: compare networks by them, not with the surface itself.

    Args:
        pred: predicted mask.
        label: mask of the label.
        spacing_mm: height and width of a pixel in mm.
        image: intensities of 0..1, to score the visible and the invisible pixels of both masks too, each by themselves.
        tolerances_mm: deviations that are accepted.
        official: as the published evaluation: a deviation must be less than the tolerance, images in which one mask is
            empty give no rows, and where one is empty in a group alone, the scores that need it are NaN.

    Returns:
        A row of `SCORE_COLUMNS` per group and tolerance.

    Shape:
        All images: (H, W).

    Raises:
        InputError: shapes differ, or the spacing, a tolerance or an intensity is impossible.

    Source:
        Wu et al. UltraBones100k: accuracy and completeness at a tolerance. Departure, unless `official`: the tolerance
        itself is accepted, and no image is left out.

    >>> label = np.zeros((9, 9), dtype=bool)
    >>> label[4] = True
    >>> rows = surface_scores(np.roll(label, 1, axis=0), label, spacing_mm=(0.5, 1), tolerances_mm=[0.4, 0.5])
    >>> [row["f1"] for row in rows]
    [0.0, 1.0]
    """
    pred, label = np.asarray(pred) > 0, np.asarray(label) > 0
    _check(pred, label, image, spacing_mm, tolerances_mm)
    if official and not (pred.any() and label.any()):
        return []
    within = {"all": np.ones_like(pred)}
    if image is not None:
        within |= {"visible": image >= VISIBLE_FROM, "invisible": image < VISIBLE_FROM}
    rows = []
    for group, where in within.items():
        masks = pred & where, label & where
        rows += [{"group": group, **row} for row in _mask_rows(*masks, spacing_mm, tolerances_mm, official)]
    return rows


def _check(
    pred: np.ndarray,
    label: np.ndarray,
    image: np.ndarray | None,
    spacing_mm: Sequence[float],
    tolerances: Sequence[float],
) -> None:
    shapes = {"pred": pred.shape, "label": label.shape, **({} if image is None else {"image": image.shape})}
    if len(set(shapes.values())) > 1 or pred.ndim != 2:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(f"{listed}: give (H, W) on one grid.")
    if len(spacing_mm) != 2 or not np.isfinite(spacing_mm).all() or min(spacing_mm) <= 0:
        raise InputError(f"spacing_mm is {tuple(spacing_mm)}: give height and width of a pixel, above 0 mm.")
    if not len(tolerances) or not np.isfinite(tolerances).all() or min(tolerances) < 0:
        raise InputError(f"tolerances_mm is {list(tolerances)}: give numbers of 0 mm or more.")
    if image is not None and not (np.min(image) >= 0 and np.max(image) <= 1):
        raise InputError(f"intensities are {np.min(image):g} to {np.max(image):g}: give an image scaled to 0..1.")


def _mask_rows(
    pred: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float], tolerances_mm: Sequence[float], official: bool
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one group."""
    empty = {(True, True): "", (False, True): "missed", (True, False): "spurious", (False, False): "both"}
    empty = empty[bool(pred.any()), bool(label.any())]
    to_label, to_pred = np.empty(0), np.empty(0)
    if not empty:
        to_label = distance_transform_edt(~label, sampling=spacing_mm)[pred]
        to_pred = distance_transform_edt(~pred, sampling=spacing_mm)[label]
    distances = dict(zip(_DISTANCES, (d.mean() if d.size else np.nan for d in (to_label, to_pred)), strict=True))
    for tolerance in tolerances_mm:
        if empty:
            scores = dict.fromkeys(_SCORES, np.nan if official or empty == "both" else 0.0)
        else:
            precision, recall = (_share_within(d, tolerance, strict=official) for d in (to_label, to_pred))
            both = precision + recall
            scores = dict(
                zip(_SCORES, (precision, recall, 2 * precision * recall / both if both else 0.0), strict=True)
            )
        yield {"tolerance_mm": tolerance, **scores, **distances, "empty": empty}


def _share_within(distances_mm: np.ndarray, tolerance_mm: float, *, strict: bool) -> float:
    """Return the share of distances up to a tolerance, or below it; rounding of either does not decide."""
    limit = np.nextafter(np.float32(tolerance_mm), np.float32(-np.inf if strict else np.inf))
    rounded = distances_mm.astype(np.float32)
    return float(np.mean(rounded <= limit))


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarise the scores of all images.

    Args:
        scores: rows of `surface_scores` of any number of images.

    Returns:
        One row per group and tolerance: the number of images `n`, of which `n_missed`, `n_spurious` and `n_both_empty`
        (see `surface_scores`), and the means of the scores and distances, NaN left out.
    """
    counts = {name: scores["empty"] == kind for name, kind in _EMPTY_COUNTS.items()}
    groups = scores.assign(**counts).groupby(["group", "tolerance_mm"], sort=True)
    means = {name: (name, "mean") for name in (*_SCORES, *_DISTANCES)}
    table = groups.agg(n=("empty", "size"), **{name: (name, "sum") for name in counts}, **means).reset_index()
    order = table["group"].map(GROUPS.index)
    return table.assign(order=order).sort_values(["order", "tolerance_mm"]).drop(columns="order").reset_index(drop=True)
