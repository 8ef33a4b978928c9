"""Thresholds of the features of each organ, and the decisions that they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scripts.common.errors import InputError

SHAPE = ("normalized_volume", "sphericity", "eccentricity")
ANATOMY = ("asymmetry", "offset_x", "offset_y", "offset_z")
FEATURES = (*SHAPE, "volume_mm3", "components", *ANATOMY)
"""All features that may vote: the paper's three, those of the published code's ranges, and ours."""

LEVELS = np.linspace(0, 1, 201)


@dataclass(frozen=True)
class Thresholds:
    """Thresholds for L organs and F = len(FEATURES) features.

    Attributes:
        organs: label id to name, ascending.
        low: (L, F), values below are outside; -inf where there is no threshold.
        high: (L, F), values above are outside; +inf where there is no threshold.
        quantiles: (201, L, F), of the cohort at 0, 0.5, ... 100 %; NaN where no subject had a value.
        subjects: (L,), number of cases with the organ.
        voting: (F,), whether a feature votes.
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
        """Names of the features that vote."""
        return [name for name, votes in zip(FEATURES, self.voting, strict=True) if votes]


def judge(table: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    """Decide about labels.

    Args:
        table: a row per label, with `label` and the columns of the voting features, perhaps `case`.
        thresholds: of `scripts.solf.fitting.fit_thresholds`.

    Returns:
        `case` if the table has it, `label`, `organ`, each voting feature with its `_percentile` in the cohort,
        `votes`, `decision` (`keep` or `reject`) and `reason`. A shape feature that is undefined because the label is
        too small (NaN) counts as outside; the asymmetry of an organ without a contralateral one does not.

    Raises:
        InputError: a label is not in the table of organs.

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
    reasons = np.where(bounded.any(axis=1), "", "no thresholds: too few subjects").astype(object)
    for row in np.flatnonzero(rejected):
        reasons[row] = _reason(names, values[row], low[row], high[row], outside[row])
    decision = np.where(rejected, "reject", "keep")
    return pd.DataFrame({**decisions, "votes": votes, "decision": decision, "reason": reasons})


def organ_rows(table: pd.DataFrame, organs: Mapping[int, str]) -> np.ndarray:
    """Return the row of each label of a table in the arrays of `Thresholds`.

    Raises:
        InputError: a label is not one of the organs.
    """
    labels, known = table["label"].to_numpy(), np.array(list(organs))
    rows = np.searchsorted(known, labels).clip(max=len(known) - 1)
    unknown = np.unique(labels[known[rows] != labels])
    if len(unknown):
        raise InputError(f"labels {unknown.tolist()} are not in the table of {len(known)} organs; correct one of them.")
    return rows


def readable(thresholds: Thresholds, **about: Any) -> dict[str, Any]:
    """Return thresholds as plain values for a JSON file, after the entries of `about`: the rule and its options."""
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
    """Return the percentiles, 0..100, of (N,) values of the organs `rows` in the (201, L) quantiles."""
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
