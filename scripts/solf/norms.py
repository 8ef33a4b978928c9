"""Conditional norms: what covariates predict of the features of each organ, by median regression."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.common.errors import InputError
from scripts.solf.covariates import Covariates, Row, design
from scripts.solf.thresholds import FEATURES, case_numbers

if TYPE_CHECKING:
    import pandas as pd

_LOGARITHMS = ("normalized_volume", "volume_mm3")
_MAX_PEOPLE = 5000  # that a regression is fitted to, evenly spread: 51,761 would take 9 times as long
_MIN_PEOPLE, _PEOPLE_PER_COLUMN = 20, 10  # of an organ
_MIN_OF_LEVEL = 10  # people with an organ that have a level, or its column is left out


@dataclass(frozen=True)
class Norms:
    """What covariates predict of L organs and F features.

    Attributes:
        coding: of `scripts.solf.covariates.learn_coding`.
        coefficients: (C, L, F), on the scale of `even`: what the C columns of the design predict beyond the organ's
            median; 0 where a feature does not vote or an organ has too few people.
        low: (L, F), thresholds for people of whom a covariate is unknown.
        high: see `low`.
    """

    coding: Mapping[str, Mapping[str, Any]]
    coefficients: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def designs(self, cases: Sequence[str], covariates: Mapping[str, Row] | None) -> tuple[np.ndarray, list[str]]:
        """Return the designs of N cases, (N, C), NaN where a covariate is unknown, and `used`, or why it is.

        Raises:
            InputError: there are no covariates.
        """
        if covariates is None:
            names = ", ".join(self.coding)
            raise InputError(
                f"the filter was fitted with the covariates {names}: set covariates to a CSV that has them."
            )
        matrix, problems = design(self.coding, [covariates.get(name) for name in cases])
        return matrix, [problem or "used" for problem in problems]

    def adjusted(
        self, values: np.ndarray, names: Sequence[str], rows: np.ndarray, designs: np.ndarray, *, sign: float = 1.0
    ) -> np.ndarray:
        """Return features of labels less what covariates predict beyond the organ's median, (K, F).

        Args:
            values: (K, F).
            names: of the F features.
            rows: (K,), number of each label's organ.
            designs: (K, C) of its case; values stay where it is NaN.
            sign: -1 to undo it.
        """
        found = np.empty(values.shape)
        for n, name in enumerate(names):
            shift = np.einsum("kc,ck->k", designs, self.coefficients[:, rows, FEATURES.index(name)])
            shifted = uneven(even(values[:, n], name) - sign * shift, name)
            found[:, n] = np.where(np.isnan(shift) | (shift == 0), values[:, n], shifted)
        return found


def fit_norms(
    columns: Mapping[str, Any],
    table: pd.DataFrame,
    rows: np.ndarray,
    covariates: Covariates,
    *,
    bounds: tuple[np.ndarray, np.ndarray],
) -> tuple[Norms, dict[str, np.ndarray]]:
    """Fit norms to a cohort, and return them with the features less what covariates predict.

    Args:
        columns: feature to its values of K labels.
        table: of the cohort, with `case`.
        rows: (K,), number of each label's organ.
        covariates: read for a fit.
        bounds: `low` and `high` of `Norms`.

    Returns:
        Where an organ has a norm, the features of cases of which a covariate is unknown are NaN.
    """
    cases, names = case_numbers(table)
    designs = design(covariates.coding, [covariates.rows.get(name) for name in names])[0][cases]
    coefficients = np.zeros((designs.shape[1], *bounds[0].shape))
    norms, conditional = Norms(covariates.coding, coefficients, *bounds), {}
    for name, column in columns.items():
        values = np.asarray(column, dtype=float)
        fitted = fit_coefficients(values, name, rows=rows, designs=designs, organs=len(bounds[0]))
        coefficients[:, :, FEATURES.index(name)] = fitted
        adjusted = norms.adjusted(values[:, None], [name], rows, designs)[:, 0]
        conditional[name] = np.where(fitted.any(axis=0)[rows] & np.isnan(designs[:, 0]), np.nan, adjusted)
    return norms, conditional


def even(values: np.ndarray, feature: str) -> np.ndarray:
    """Return values on a scale on which organs vary alike, whether large or small, of one part or many."""
    if feature in _LOGARITHMS:
        return np.log(values)
    return np.sign(values) * np.sqrt(np.abs(values)) if feature == "components" else values


def uneven(values: np.ndarray, feature: str) -> np.ndarray:
    """Undo `even`."""
    if feature in _LOGARITHMS:
        return np.exp(values)
    return np.sign(values) * values**2 if feature == "components" else values


def fit_coefficients(
    values: np.ndarray, feature: str, *, rows: np.ndarray, designs: np.ndarray, organs: int
) -> np.ndarray:
    """Fit a feature of each organ to covariates by median regression.

    Args:
        values: (K,), of labels.
        feature: its name.
        rows: (K,), number of the organ.
        designs: (K, C); NaN for people of whom a covariate is unknown.
        organs: their count.

    Returns:
        (C, L), of an organ of which at least 20 people, and 10 per column, are known; else 0, as for a feature of which
        half of the people have the same value.
    """
    coefficients = np.zeros((designs.shape[1], organs))
    known = ~np.isnan(values) & ~np.isnan(designs[:, 0])
    for row in np.unique(rows[known]):
        own = np.flatnonzero(known & (rows == row))
        own = own[np.unique(np.linspace(0, len(own) - 1, min(len(own), _MAX_PEOPLE)).astype(int))]
        if len(own) >= max(_MIN_PEOPLE, _PEOPLE_PER_COLUMN * designs.shape[1]):
            coefficients[:, row] = _median_regression(even(values[own], feature), designs[own])
    return coefficients


def _median_regression(values: np.ndarray, designs: np.ndarray) -> np.ndarray:
    """Return coefficients of the median of (N,) values beyond their own median, (C,).

    Source:
        Koenker and Bassett. Regression quantiles. Econometrica 1978; fitted by `statsmodels`.
    """
    middle, (low, high) = np.median(values), np.quantile(values, [0.25, 0.75])
    found = np.zeros(designs.shape[1])
    if high <= low:
        return found
    from statsmodels.regression.quantile_regression import QuantReg  # here: 1.3 s, only for fits with covariates

    used = (designs != 0).sum(axis=0) >= _MIN_OF_LEVEL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # steps that still alternate about the optimum after 1000
        fitted = QuantReg((values - middle) / (high - low), designs[:, used]).fit(0.5)
    found[used] = fitted.params * (high - low)
    return found
