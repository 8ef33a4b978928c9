"""The bounds that each rule sets for a feature of an organ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scripts.solf.norms import even, uneven
from scripts.solf.reference import SIGMA_OF_MAD

Bounds = tuple[float, float]

_COMPONENTS_SIGMA = 0.25  # least standard deviation of the root of a count: with 4, up to 4 components for usually 1
_SIGMA_OF_DECILE = 1 / 1.2816  # a normal distribution's standard deviation over median to ninth decile

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


def _percentile_bounds(known: np.ndarray, *, factor: float, **_: str) -> Bounds:
    low, high = np.quantile(known, [factor, 1 - factor])
    return low, high


def _iqr_bounds(known: np.ndarray, *, factor: float, **_: str) -> Bounds:
    low, high = np.quantile(known, [0.25, 0.75])
    reach = factor * (high - low)
    return low - reach, high + reach


def _mad_bounds(known: np.ndarray, *, factor: float, feature: str, **_: str) -> Bounds:
    """Return median -+ reach; a median deviation of 0 is replaced by the standard deviation."""
    values = even(known, feature)
    middle = np.median(values)
    sigma = SIGMA_OF_MAD * np.median(np.abs(values - middle))
    return _around(middle, (sigma, sigma), values, factor=factor, feature=feature)


def _decile_bounds(known: np.ndarray, *, factor: float, feature: str, **_: str) -> Bounds:
    """Return median -+ reach, of which each side has its own."""
    values = even(known, feature)
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    sigmas = (middle - low) * _SIGMA_OF_DECILE, (high - middle) * _SIGMA_OF_DECILE
    return _around(middle, sigmas, values, factor=factor, feature=feature)


def _around(middle: float, sigmas: tuple[float, float], values: np.ndarray, *, factor: float, feature: str) -> Bounds:
    """Return the bounds on the feature's own scale; a side without variation takes that of all values."""
    least = _COMPONENTS_SIGMA if feature == "components" else 0.0
    below, above = (max(sigma, least) or values.std() for sigma in sigmas)
    low, high = middle - factor * below, middle + factor * above
    return uneven(low if feature != "components" else max(low, 0.0), feature), uneven(high, feature)


def _published_bounds(_: np.ndarray, *, organ: str, feature: str, **__: float) -> Bounds:
    if feature == "volume_mm3":
        low, high = _VOLUMES_CM3.get(organ, _OTHER_VOLUMES_CM3)
        return low * 1000.0, high * 1000.0
    if feature == "components":
        return -np.inf, _MAX_COMPONENTS
    return (_MIN_SPHERICITY if organ in _ROUND else -np.inf), np.inf


BOUNDS: dict[str, Callable[..., Bounds]] = {
    "percentile": _percentile_bounds,
    "iqr": _iqr_bounds,
    "mad": _mad_bounds,
    "deciles": _decile_bounds,
    "ranges": _published_bounds,
}
"""Rule to a function of the sorted known values, with `organ`, `feature` and the rule's `factor` by name."""
