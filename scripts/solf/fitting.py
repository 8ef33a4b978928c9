"""Fitting thresholds of each organ's features to a cohort."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scripts.common.errors import InputError, raise_all
from scripts.common.settings import setting_problems
from scripts.solf.bounds import BOUNDS, Bounds
from scripts.solf.covariates import Covariates
from scripts.solf.norms import fit_norms
from scripts.solf.reference import MEASURES, RELATIVE, Reference, fit_reference, measures, relate
from scripts.solf.thresholds import (
    FEATURES,
    INPUTS,
    LEVELS,
    MIN_CASES,
    SHAPE,
    Thresholds,
    absent_in_view,
    case_numbers,
    organ_rows,
)

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Rule = Literal["percentile", "iqr", "mad", "deciles", "ranges"]
_MIN_SUBJECTS = 20  # for quartiles and medians


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
    decile_factor: float = 4.25,
    missing_percent: float = 95.0,
    version: str = "",
    covariates: Covariates | None = None,
) -> Thresholds:
    """Fit thresholds to a cohort.

    Args:
        table: a row per case and label, with `label` and columns of `INPUTS`, as many as there are. Relative features
            and missing organs need `case` and `MEASURES`.
        organs: label id to name of every organ.
        rule: `percentile`, the extreme `epsilon_percent` at each end are outside; `iqr`, Tukey's fences, `iqr_factor`
            times the interquartile range beyond the quartiles; `mad`, more than `mad_factor` robust standard
            deviations (1.4826 times the median absolute deviation) from the median; `deciles`, more than
            `decile_factor` standard deviations from the median, of which each side has its own, the distance from the
            median to the first or ninth decile over 1.2816; `ranges`, the published code's fixed ranges of volume,
            sphericity and components, any of which rejects. Of volumes, `mad` and `deciles` take logarithms, of
            components square roots.
        features: names of `FEATURES` that vote. The paper's baseline by volume alone is `["normalized_volume"]` with
            `votes=1`. Not for `ranges`.
        votes: number of features outside that rejects a label. Not for `ranges`.
        epsilon_percent: share of the cohort that is outside at each end.
        iqr_factor: see `rule`.
        mad_factor: see `rule`.
        decile_factor: see `rule`.
        missing_percent: organs that at least so many percent of the cases have, of those whose field of view shows
            the organ's place, are looked for in every case.
        version: of the bundle, for the record.
        covariates: read for a fit. Thresholds are then fitted to the features less what covariates predict beyond the
            median; cases of which a covariate is unknown take part in the thresholds without covariates alone. Not for
            `ranges`.

    Raises:
        InputError: an option is out of its range, the rule `ranges` is given covariates, or no organ has as many
            subjects as the rule needs (`percentile`: 100 / epsilon_percent; `iqr`, `mad` and `deciles`: 20). Organs
            with fewer are named in a warning and have no thresholds.

    Source:
        UKBOB (arXiv 2504.06908): percentile, epsilon 2, two of three features, and its baselines; the fixed ranges
        are those of the published code (UKBOB/filtering/organ_filtering.py), which the paper does not mention. Ours:
        `deciles`. Organs vary more to one side than to the other, and beyond the quartiles more than a normal
        distribution, above all where the field of view cuts some; up to 10 % of wrong labels at each side do not move
        the deciles beyond the right ones. Percentiles saturate where many labels have the same extreme value: if 3 %
        of an organ's labels are a single voxel, its 2 % quantile of volume is that voxel, and none is below it.

    >>> from scripts.solf.thresholds import judge
    >>> import pandas as pd
    >>> table = pd.DataFrame({"label": 1, "sphericity": np.linspace(0.5, 0.7, 101)})
    >>> fitted = fit_thresholds(table, organs={1: "spleen"}, features=["sphericity"], votes=1)
    >>> judge(table, fitted)["decision"].value_counts().to_dict()
    {'keep': 97, 'reject': 4}
    """
    if rule == "ranges" and covariates is not None:
        raise InputError("the fixed ranges of the rule ranges take no covariates: choose another rule, or none.")
    if rule == "ranges":
        features, votes = ("sphericity", "volume_mm3", "components"), 1
    chosen = {"rule": rule, "features": features, "votes": votes, "epsilon_percent": epsilon_percent}
    chosen |= {"iqr_factor": iqr_factor, "mad_factor": mad_factor, "decile_factor": decile_factor}
    needed = subjects_needed(**chosen, missing_percent=missing_percent)
    rows = organ_rows(table, organs)
    subjects = np.bincount(rows, minlength=len(organs))
    _require_enough(subjects, needed, list(organs.values()))
    reference, relative, cases, present_percent = _reference(table, rows, organs)
    if lacking := [name for name in features if name in RELATIVE and name not in relative]:
        raise InputError(f"features: {', '.join(lacking)} need the columns case, {', '.join(MEASURES)}; add them.")
    factors = {"percentile": epsilon_percent / 100, "iqr": iqr_factor, "mad": mad_factor, "deciles": decile_factor}
    bounds = partial(BOUNDS[rule], factor=factors.get(rule, 0.0))
    columns = {name: table[name] for name in FEATURES if name in table} | relative
    fit = partial(_fit_columns, rows=rows, organs=organs, needed=dict.fromkeys(features, needed), bounds=bounds)
    low, high, quantiles = fit(columns)
    norms = None
    if covariates is not None:
        voting = {name: columns[name] for name in features}
        norms, conditional = fit_norms(voting, table, rows, covariates, bounds=(low, high))
        low, high, quantiles = fit(columns | conditional)
    return Thresholds(
        organs=organs,
        low=low,
        high=high,
        quantiles=quantiles,
        subjects=subjects,
        voting=np.isin(FEATURES, features),
        votes=votes,
        cases=cases or int(subjects.max(initial=0)),
        present_percent=present_percent,
        missing_percent=missing_percent,
        reference=reference,
        norms=norms,
        about={**chosen, "features": list(features), "version": version, "cohort": cohort_fingerprint(table)},
    )


def _fit_columns(
    columns: Mapping[str, Any],
    *,
    rows: np.ndarray,
    organs: Mapping[int, str],
    needed: Mapping[str, int],
    bounds: Callable[..., Bounds],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return low and high, (L, F), and quantiles, (201, L, F), of features.

    Args:
        columns: feature to its values of K labels.
        rows: (K,), number of each label's organ.
        organs: label id to name.
        needed: feature that votes to the number of values that an organ needs.
        bounds: returns the bounds of known values.
    """
    low, high = (np.full((len(organs), len(FEATURES)), bound) for bound in (-np.inf, np.inf))
    quantiles = np.full((len(LEVELS), len(organs), len(FEATURES)), np.nan)
    names = list(organs.values())
    for row, column, values in _columns(columns, rows):
        feature, known = FEATURES[column], np.sort(values[~np.isnan(values)])
        if len(known):  # np.quantile is slow for so many levels
            quantiles[:, row, column] = np.interp(LEVELS * (len(known) - 1), np.arange(len(known)), known)
        if feature in needed and len(known) >= max(needed[feature], 1):
            low[row, column], high[row, column] = bounds(known, organ=names[row], feature=feature)
    return low, high, quantiles


def subjects_needed(*, rule: str, features: Sequence[str] = SHAPE, epsilon_percent: float = 2.0, **options: Any) -> int:
    """Check options of `fit_thresholds` and return how many subjects the rule needs of an organ.

    Raises:
        InputError: an option is out of its range.
    """
    given = {"rule": rule, "features": features, "epsilon_percent": epsilon_percent, **options}
    raise_all(setting_problems(given), "rule of the label filter", "correct the settings")
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


def _reference(
    table: pd.DataFrame, rows: np.ndarray, organs: Mapping[int, str]
) -> tuple[Reference | None, dict[str, np.ndarray], int, np.ndarray]:
    """Return the cohort's reference, the relative features of its labels, its number of cases and `present_percent`.

    Of tables without the columns: no reference, no features, 0 cases, NaN.
    """
    if not {"case", *MEASURES} <= set(table):
        return None, {}, 0, np.full(len(organs), np.nan)
    cases, case_names = case_numbers(table)
    measured = measures(table, cases, rows, len(organs))
    reference = fit_reference(measured)
    related = relate(measured, reference)
    absent, shown = absent_in_view(table, cases, rows, related, reference)
    showing = shown.sum(axis=0)
    present_percent = np.where(showing >= MIN_CASES, 100 * (shown & ~absent).sum(axis=0) / showing.clip(min=1), np.nan)
    features = {name: related.features[cases, rows, n] for n, name in enumerate(RELATIVE)}
    return reference, features, len(case_names), present_percent


def cohort_fingerprint(table: pd.DataFrame) -> str:
    """Return 64 hexadecimal digits that differ between cohorts; names and values cannot be read from them."""
    digest = hashlib.sha256()
    for name in INPUTS:
        if name == "case" and name in table:
            numbers, names = case_numbers(table)
            digest.update("\0".join(map(str, names)).encode() + numbers.astype("<i8").tobytes())
        elif name in table:
            digest.update(name.encode() + table[name].to_numpy(dtype="<f8").tobytes())
    return digest.hexdigest()


def _columns(columns: Mapping[str, Any], rows: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (row of the organ, column of the feature, values of its subjects) for all organs and features present."""
    order = np.argsort(rows, kind="stable")
    found, starts = np.unique(rows[order], return_index=True)
    for name, column in columns.items():
        values = np.asarray(column, dtype=float)[order]
        for row, own in zip(found, np.split(values, starts[1:]), strict=True):
            yield int(row), FEATURES.index(name), own
