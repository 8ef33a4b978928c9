"""The cohort's median person, and the size and place of a person's organs against it.

A person's size and pose are fitted robustly to all of its organs, so that a missing, merged or truncated one hardly
moves the features of the others, as it moves `normalized_volume` and `offset_x`, which refer to the sum of all labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RELATIVE = ("relative_volume", "relative_x", "relative_y", "relative_z")
MEASURES = ("volume_mm3", "centroid_x_mm", "centroid_y_mm", "centroid_z_mm")
"""What `RELATIVE` are made of."""

SIGMA_OF_MAD = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
_MIN_CASES = 20  # with an organ, for its median and spread
_MIN_ORGANS = 3  # of a person, for its size and pose
_MAX_CASES = 2000  # that the reference is fitted to, evenly spread: more would hardly move a median
_CASES_AT_ONCE = 500  # whose arrays stay in the cache
_ALTERNATIONS, _ITERATIONS = 4, 10
_CAUCHY = 2.0  # residuals of so many spreads get half the weight
_LEAST_LOG, _LEAST_MM = 0.01, 0.1  # spreads of cohorts whose organs are all alike
_STRETCH = 0.05  # expected standard deviation of the pose's matrix; keeps it near 1 where organs are few


class Reference(NamedTuple):
    """The median person: (L, 4) arrays of logarithm of volume in mm3 and x, y, z in mm; NaN for organs of few cases.

    Attributes:
        medians: of the logarithm of volume, and of the position in the reference body.
        spreads: robust standard deviations of the logarithm of volume, and of positions once the pose is removed.
    """

    medians: np.ndarray
    spreads: np.ndarray


class Related(NamedTuple):
    """People against the reference.

    Attributes:
        features: (N, L, 4), `RELATIVE`; NaN where the person lacks the organ or has less than three known ones.
        places_mm: (N, L, 3), where an organ's centroid is expected; NaN for persons with less than three known organs.
    """

    features: np.ndarray
    places_mm: np.ndarray


def measures(table: Mapping[str, np.ndarray], cases: np.ndarray, rows: np.ndarray, organs: int) -> np.ndarray:
    """Arrange the labels of a table by person and organ.

    Args:
        table: columns `MEASURES`, of K labels.
        cases: (K,), number of each label's person, from 0.
        rows: (K,), number of its organ.
        organs: their count.

    Returns:
        (N, L, 4), logarithm of volume and centroid; NaN where there is no label.
    """
    arranged = np.full((int(cases.max(initial=-1)) + 1, organs, 4), np.nan)
    for column, name in enumerate(MEASURES):
        arranged[cases, rows, column] = table[name]
    arranged[:, :, 0] = np.log(arranged[:, :, 0])
    return arranged


def fit_reference(measured: np.ndarray) -> Reference:
    """Fit the median person to a cohort, by turns with every person's pose.

    Args:
        measured: (N, L, 4) of `measures`.
    """
    chosen = np.unique(np.linspace(0, len(measured) - 1, min(len(measured), _MAX_CASES)).astype(int))
    logs, positions_mm = measured[chosen, :, 0], measured[chosen, :, 1:]
    few = (~np.isnan(logs)).sum(axis=0) < _MIN_CASES
    middles_mm = median(positions_mm, axis=1)[:, None]
    places = median(positions_mm - middles_mm, axis=0)
    residuals = positions_mm - middles_mm - places
    for _ in range(_ALTERNATIONS):
        places[few] = np.nan
        places -= median(places, axis=0)
        spreads = _floored(SIGMA_OF_MAD * median(np.abs(residuals), axis=0), least=_LEAST_MM)
        residuals = positions_mm - _poses(positions_mm, places, spreads)
        places += median(residuals, axis=0)
    sizes = median(logs, axis=0)
    of_sizes = SIGMA_OF_MAD * median(np.abs(logs - sizes), axis=0)[:, None]
    medians = np.column_stack([sizes, places])
    spreads = np.column_stack([_floored(of_sizes, least=_LEAST_LOG), spreads])
    medians[few] = spreads[few] = np.nan
    return Reference(medians, spreads)


def relate(measured: np.ndarray, reference: Reference) -> Related:
    """Return the size and place of people's organs against the reference.

    `relative_volume` is the logarithm of the organ's volume less the cohort's median, in units of the organ's spread,
    less the median of that over the person's organs: the person's size. `relative_x`, `relative_y` and `relative_z` are
    the distances along the patient's axes from where the person's pose puts the organ of the reference, in units of the
    organ's spread. A person with less than three organs that the reference knows has size 0 and no relative positions.

    Args:
        measured: (N, L, 4) of `measures`.
        reference: of the fitted cohort.
    """
    logs, positions_mm = measured[:, :, 0], measured[:, :, 1:]
    few = (~np.isnan(logs + reference.medians[:, 0])).sum(axis=1) < _MIN_ORGANS
    places_mm = _poses(positions_mm, reference.medians[:, 1:], reference.spreads[:, 1:])
    places_mm[few] = np.nan
    features = measured.copy()  # changed in place, as they are large
    features[:, :, 0] -= reference.medians[:, 0]
    features[:, :, 1:] -= places_mm
    features /= reference.spreads
    features[:, :, 0] -= np.where(few, 0, median(features[:, :, 0], axis=1))[:, None]
    return Related(features, places_mm)


def _poses(positions_mm: np.ndarray, places: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """Fit an affine pose to each person, and return where it puts the reference's organs, (N, L, 3).

    Iteratively reweighted least squares with Cauchy's weights, from the median translation.

    Args:
        positions_mm: (N, L, 3), NaN where there is no organ.
        places: (L, 3), of the reference; NaN where unknown.
        spreads: (L, 3).
    """
    predicted = np.empty_like(positions_mm)
    for start in range(0, len(positions_mm), _CASES_AT_ONCE):
        part = slice(start, start + _CASES_AT_ONCE)
        predicted[part] = _poses_of_part(positions_mm[part], places, spreads)
    return predicted


def _poses_of_part(positions_mm: np.ndarray, places: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    known = ~np.isnan(positions_mm[:, :, 0] + places[:, 0])
    body_mm = float(np.sqrt(np.nanmean(places**2))) if not np.isnan(places).all() else 1.0
    design = np.column_stack([np.ones(len(places)), places / max(body_mm, 1e-6)])  # (L, 4)
    filled, observed = np.nan_to_num(design), np.nan_to_num(positions_mm)
    squares = (filled[:, :, None] * filled[:, None, :]).reshape(len(places), 16)
    prior = np.diag([1e-9, *[(_STRETCH * body_mm) ** -2] * 3])
    middles = median(np.where(known[:, :, None], positions_mm - places, np.nan), axis=1)
    predicted = np.nan_to_num(middles)[:, None] + places
    for _ in range(_ITERATIONS):
        scaled = np.where(known[:, :, None], (observed - predicted) / spreads, 0)
        weights = known / (1 + (scaled**2).mean(axis=2) / _CAUCHY**2)
        predicted = np.empty_like(positions_mm)
        for axis in range(3):
            precision = np.where(known, weights / np.nan_to_num(spreads[:, axis], nan=1.0) ** 2, 0)
            normal = (precision @ squares).reshape(-1, 4, 4) + prior
            right = (precision * observed[:, :, axis]) @ filled + prior[:, 1 + axis] * body_mm
            predicted[:, :, axis] = np.linalg.solve(normal, right[:, :, None])[:, :, 0] @ design.T
    return predicted


def median(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Return medians without NaN; NaN where there is nothing else. Much faster than NumPy's `nanmedian`."""
    ordered = np.sort(np.moveaxis(values, axis, -1), axis=-1)
    count = np.maximum((~np.isnan(ordered)).sum(axis=-1, keepdims=True), 1)
    middle = (np.take_along_axis(ordered, index, axis=-1) for index in ((count - 1) // 2, count // 2))
    return sum(middle)[..., 0] / 2


def _floored(spreads: np.ndarray, *, least: float) -> np.ndarray:
    """Return spreads, (L, D), of at least a tenth of the median organ's and `least`; those of NaN stay."""
    return np.maximum(spreads, np.maximum(median(spreads, axis=0) / 10, least))
