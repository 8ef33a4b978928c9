"""What is ordinary for each organ, and what that says about a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

SHAPE = ("normalized_volume", "sphericity", "eccentricity")
ANATOMY = ("asymmetry", "offset_x", "offset_y", "offset_z")
FEATURES = (*SHAPE, "volume_mm3", "components", *ANATOMY)
"""All features that may vote: the paper's three, those of the published ranges, and ours."""

LEVELS = np.linspace(0, 1, 201)


@dataclass(frozen=True)
class Thresholds:
    """What is ordinary for each organ; L organs, F = len(FEATURES).

    Attributes:
        organs: label id to name, ascending.
        low: (L, F), values below are outside; -inf where there is no threshold.
        high: (L, F), values above are outside; +inf where there is no threshold.
        quantiles: (201, L, F), of the cohort at 0, 0.5, ... 100 %; NaN where nothing was seen.
        subjects: (L,), cases that had the organ.
        voting: (F,), the features that may reject.
        votes: features outside that reject a label.
    """

    organs: Mapping[int, str]
    low: np.ndarray
    high: np.ndarray
    quantiles: np.ndarray
    subjects: np.ndarray
    voting: np.ndarray
    votes: int

    @property
    def features(self) -> list[str]:
        """Names of the features that may reject."""
        return [name for name, votes in zip(FEATURES, self.voting, strict=True) if votes]


def judge(table: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    """Decide about labels.

    Args:
        table: a row per label, with `label` and the columns of the voting features; `case` is taken along.
        thresholds: of `scripts.solf.fitting.fit_thresholds`.

    Returns:
        `case` where there is one, `label`, `organ`, each voting feature with its `_percentile` in the cohort,
        `votes`, `decision` (`keep` or `reject`) and `reason`. A shape that a label is too small to have (NaN) counts
        as outside; the asymmetry of an organ whose partner is missing does not.

    Raises:
        ValueError: a label is not in the table of organs.

    Source:
        UKBOB (arXiv 2504.06908), SOLF: a label with at least two of three features outside is rejected.
    """
    names, rows = thresholds.features, organ_rows(table, thresholds.organs)
    columns = [FEATURES.index(name) for name in names]
    values = table[names].to_numpy(dtype=float)
    low, high = (bound[rows][:, columns] for bound in (thresholds.low, thresholds.high))
    bounded = np.isfinite(low) | np.isfinite(high)
    shapeless = np.isnan(values) & bounded & ~np.isin(names, ANATOMY)
    outside = (values < low) | (values > high) | shapeless
    votes = outside.sum(axis=1)
    rejected = votes >= thresholds.votes
    decisions: dict[str, Any] = {name: table[name] for name in ("case", "label") if name in table}
    decisions["organ"] = table["label"].map(dict(thresholds.organs))
    for n, (name, column) in enumerate(zip(names, columns, strict=True)):
        percentile = _percentiles(values[:, n], rows, thresholds.quantiles[:, :, column])
        decisions |= {name: values[:, n], f"{name}_percentile": percentile}
    reasons = np.where(bounded.any(axis=1), "", "not judged: too few subjects had it").astype(object)
    for row in np.flatnonzero(rejected):
        reasons[row] = _reason(names, values[row], low[row], high[row], outside[row])
    decision = np.where(rejected, "reject", "keep")
    return pd.DataFrame({**decisions, "votes": votes, "decision": decision, "reason": reasons})


def organ_rows(table: pd.DataFrame, organs: Mapping[int, str]) -> np.ndarray:
    """Return where each label of a table stands among the organs.

    Raises:
        ValueError: a label is none of them.
    """
    labels, known = table["label"].to_numpy(), np.array(list(organs))
    rows = np.searchsorted(known, labels).clip(max=len(known) - 1)
    strangers = np.unique(labels[known[rows] != labels])
    if len(strangers):
        raise ValueError(f"labels {strangers.tolist()} are not in the table of {len(known)} organs: correct either.")
    return rows


def readable(thresholds: Thresholds, **about: Any) -> dict[str, Any]:
    """Return thresholds as plain values for a JSON file, after what `about` says of how they came to be."""
    medians = thresholds.quantiles[len(LEVELS) // 2]
    organs: dict[str, dict[str, Any]] = {}
    for row, (label, organ) in enumerate(thresholds.organs.items()):
        organs[str(label)] = {"organ": organ, "subjects": int(thresholds.subjects[row])}
        for name in thresholds.features:
            at = (row, FEATURES.index(name))
            numbers = {"low": thresholds.low[at], "median": medians[at], "high": thresholds.high[at]}
            organs[str(label)][name] = {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()}
    return {**about, "features": thresholds.features, "votes": thresholds.votes, "organs": organs}


def _percentiles(values: np.ndarray, rows: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Return where the (N,) values of the organs `rows` lie in the (201, L) quantiles, 0..100."""
    percentiles = np.full(len(values), np.nan)
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(quantiles.shape[1] + 1))
    for row in np.flatnonzero(np.diff(starts)):
        own = order[starts[row] : starts[row + 1]]
        if not np.isnan(quantiles[0, row]):
            percentiles[own] = np.interp(values[own], quantiles[:, row], 100 * LEVELS)
    return percentiles


def _reason(names: list[str], values: np.ndarray, low: np.ndarray, high: np.ndarray, outside: np.ndarray) -> str:
    parts = []
    for n in np.flatnonzero(outside):
        if np.isnan(values[n]):
            parts.append(f"{names[n]} undefined, too few voxels")
        else:
            side, bound = ("below", low[n]) if values[n] < low[n] else ("above", high[n])
            parts.append(f"{names[n]} {values[n]:.4g} {side} {bound:.4g}")
    return "; ".join(parts)
