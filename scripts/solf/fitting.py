"""Fitting thresholds of each organ's features to a cohort."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from scripts.common.errors import InputError, raise_all
from scripts.common.settings import setting_problems
from scripts.solf.thresholds import FEATURES, LEVELS, SHAPE, Thresholds, organ_rows

logger = logging.getLogger(__name__)

Rule = Literal["percentile", "iqr", "mad", "ranges"]
Bounds = tuple[float, float]

_SKEWED = ("normalized_volume", "volume_mm3", "components")
_MAD_TO_SIGMA = 1.4826
_MIN_SUBJECTS = 20  # for quartiles and medians

# Ranges of the published code: volumes in cm3, sphericity, number of components.
_VOLUMES_CM3 = {
    "spleen": (100, 300),
    "kidney_right": (80, 200),
    "kidney_left": (80, 200),
    "gallbladder": (15, 60),
    "liver": (1000, 2500),
    "stomach": (100, 500),
    "pancreas": (60, 150),
    "adrenal_gland_right": (3, 10),
    "adrenal_gland_left": (3, 10),
    "urinary_bladder": (100, 600),
    "heart": (200, 400),
    "spinal_cord": (20, 50),
}
_OTHER_VOLUMES_CM3 = (1, 10_000)
_MIN_SPHERICITY = 0.3
_ROUND = ("spleen", "kidney_right", "kidney_left", "adrenal_gland_right", "adrenal_gland_left")
_MAX_COMPONENTS = 3


def fit_thresholds(
    table: pd.DataFrame,
    *,
    organs: Mapping[int, str],
    rule: Rule = "percentile",
    features: Sequence[str] = SHAPE,
    votes: int = 2,
    epsilon_percent: float = 2.0,
    iqr_factor: float = 1.5,
    mad_factor: float = 6.0,
) -> Thresholds:
    """Fit thresholds to a cohort.

    Args:
        table: a row per case and label, with `label` and columns of `FEATURES`, as many as there are.
        organs: label id to name of every organ.
        rule: `percentile`, the extreme `epsilon_percent` at each end are outside; `iqr`, Tukey's fences, `iqr_factor`
            times the interquartile range beyond the quartiles; `mad`, more than `mad_factor` robust standard
            deviations (1.4826 times the median absolute deviation; of logarithms for volumes and counts) from the
            median; `ranges`, the published code's fixed ranges of volume, sphericity and components, any of which
            rejects.
        features: names of `FEATURES` that vote. The paper's baseline by volume alone is `["normalized_volume"]` with
            `votes=1`. Not for `ranges`.
        votes: number of features outside that rejects a label. Not for `ranges`.
        epsilon_percent: share of the cohort that is outside at each end.
        iqr_factor: see `rule`.
        mad_factor: see `rule`.

    Raises:
        InputError: an option is out of its range, or no organ has as many subjects as the rule needs (`percentile`:
            100 / epsilon_percent; `iqr` and `mad`: 20). Organs with fewer are named in a warning and have no
            thresholds.

    Source:
        UKBOB (arXiv 2504.06908): percentile, epsilon 2, two of three features, and its baselines; the fixed ranges
        are those of the published code (UKBOB/filtering/organ_filtering.py), which the paper does not mention.

    >>> from scripts.solf.thresholds import judge
    >>> table = pd.DataFrame({"label": 1, "sphericity": np.linspace(0.5, 0.7, 101)})
    >>> fitted = fit_thresholds(table, organs={1: "spleen"}, features=["sphericity"], votes=1)
    >>> judge(table, fitted)["decision"].value_counts().to_dict()
    {'keep': 97, 'reject': 4}
    """
    if rule == "ranges":
        features, votes = ("sphericity", "volume_mm3", "components"), 1
    options = {"epsilon_percent": epsilon_percent, "iqr_factor": iqr_factor, "mad_factor": mad_factor}
    needed = subjects_needed(rule=rule, features=features, votes=votes, **options)
    factors = {"percentile": epsilon_percent / 100, "iqr": iqr_factor, "mad": mad_factor, "ranges": 0.0}
    bounds = partial(_BOUNDS[rule], factor=factors[rule])
    low, high = (np.full((len(organs), len(FEATURES)), bound) for bound in (-np.inf, np.inf))
    quantiles = np.full((len(LEVELS), len(organs), len(FEATURES)), np.nan)
    subjects = np.zeros(len(organs), dtype=np.int64)
    names = list(organs.values())
    for row, column, values in _columns(table, organs):
        feature, known = FEATURES[column], values[~np.isnan(values)]
        subjects[row] = len(values)
        if len(known):
            quantiles[:, row, column] = np.quantile(known, LEVELS)
        if feature in features and len(known) >= max(needed, 1):
            low[row, column], high[row, column] = bounds(known, organ=names[row], feature=feature)
    _require_enough(subjects, needed, names)
    return Thresholds(organs, low, high, quantiles, subjects, np.isin(FEATURES, features), votes)


def subjects_needed(
    *,
    rule: str,
    features: Sequence[str] = SHAPE,
    votes: int = 2,
    epsilon_percent: float = 2.0,
    iqr_factor: float = 1.5,
    mad_factor: float = 6.0,
) -> int:
    """Check the options of `fit_thresholds` and return how many subjects the rule needs of an organ.

    Raises:
        InputError: an option is out of its range.
    """
    raise_all(setting_problems(locals()), "rule of the label filter", "correct the settings")
    needed = int(np.ceil(100 / max(epsilon_percent, 1e-6)))  # without overflow
    return {"percentile": needed, "ranges": 0}.get(rule, _MIN_SUBJECTS)


def _require_enough(subjects: np.ndarray, needed: int, names: Sequence[str]) -> None:
    if subjects.max(initial=0) < needed:
        raise InputError(
            f"the most frequent organ has {subjects.max(initial=0)} subjects, the rule needs {needed}: give more label "
            "maps, a larger epsilon_percent, or the rule ranges, which needs none."
        )
    few = [f"{name} ({n})" for name, n in zip(names, subjects, strict=True) if 0 < n < needed]
    if few:
        logger.warning("no thresholds for organs with fewer than %d subjects: %s", needed, ", ".join(few))


def _columns(table: pd.DataFrame, organs: Mapping[int, str]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (row of the organ, column of the feature, values of its subjects) for all organs and features present."""
    rows = organ_rows(table, organs)
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(len(organs) + 1))
    for column, feature in enumerate(FEATURES):
        if feature in table:
            values = table[feature].to_numpy(dtype=float)[order]
            for row in np.flatnonzero(np.diff(starts)):
                yield int(row), column, values[starts[row] : starts[row + 1]]


def _percentile_bounds(known: np.ndarray, *, factor: float, **_: str) -> Bounds:
    low, high = np.quantile(known, [factor, 1 - factor])
    return low, high


def _iqr_bounds(known: np.ndarray, *, factor: float, **_: str) -> Bounds:
    low, high = np.quantile(known, [0.25, 0.75])
    reach = factor * (high - low)
    return low - reach, high + reach


def _mad_bounds(known: np.ndarray, *, factor: float, feature: str, **_: str) -> Bounds:
    """Return median -+ reach; a median deviation of 0 is replaced by the standard deviation."""
    values = np.log(known) if feature in _SKEWED else known
    median = np.median(values)
    sigma = _MAD_TO_SIGMA * np.median(np.abs(values - median)) or values.std()
    low, high = median - factor * sigma, median + factor * sigma
    return (np.exp(low), np.exp(high)) if feature in _SKEWED else (low, high)


def _published_bounds(_: np.ndarray, *, organ: str, feature: str, **__: float) -> Bounds:
    if feature == "volume_mm3":
        low, high = _VOLUMES_CM3.get(organ, _OTHER_VOLUMES_CM3)
        return low * 1000.0, high * 1000.0
    if feature == "components":
        return -np.inf, _MAX_COMPONENTS
    return (_MIN_SPHERICITY if organ in _ROUND else -np.inf), np.inf


_BOUNDS: dict[str, Callable[..., Bounds]] = {
    "percentile": _percentile_bounds,
    "iqr": _iqr_bounds,
    "mad": _mad_bounds,
    "ranges": _published_bounds,
}
