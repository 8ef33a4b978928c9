"""Thresholds as the buffers of the label filter, and what buffers no fit gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from scripts.common.errors import InputError
from scripts.solf.covariates import MAX_COLUMNS, design_names
from scripts.solf.norms import Norms
from scripts.solf.reference import Reference
from scripts.solf.thresholds import FEATURES, Thresholds

ARRAYS = ("low", "high", "quantiles", "subjects", "voting", "present_percent")
NORMS = ("coefficients", "norm_low", "norm_high")
"""Buffers of the norms; all NaN without."""


def text_buffer(content: Any, *, length: int = 0) -> torch.Tensor:
    """Return plain values as JSON, uint8; part of the weights, so it must not depend on installed versions.

    Raises:
        InputError: it is longer than `length`.
    """
    text = json.dumps(content, sort_keys=True).encode()
    if length and len(text) > length:
        raise InputError(f"the settings of the fit take {len(text)} bytes: give shorter ones, at most {length}.")
    return torch.tensor(list(text.ljust(length)), dtype=torch.uint8)


def stored_thresholds(buffers: Mapping[str, torch.Tensor], organs: Mapping[int, str]) -> Thresholds:
    """Return the thresholds in buffers.

    Raises:
        ValueError: `about` or `coding` is not JSON of an object.
    """
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in buffers.items()}
    about, coding = (json.loads(arrays[name].tobytes()) for name in ("about", "coding"))
    if not (isinstance(about, dict) and isinstance(coding, dict)):
        raise ValueError("not an object")
    return Thresholds(
        organs=organs,
        **{name: arrays[name] for name in ARRAYS},
        votes=int(arrays["votes"]),
        cases=int(arrays["cases"]),
        missing_percent=float(arrays["missing_percent"]),
        reference=None if np.isnan(arrays["reference"]).all() else Reference(*arrays["reference"]),
        norms=_norms(arrays, coding),
        about=about,
    )


def _norms(arrays: Mapping[str, np.ndarray], coding: Mapping[str, Any]) -> Norms | None:
    """Return the norms in buffers, None without covariates.

    Raises:
        ValueError: `coding` is none, or does not fit the coefficients.
    """
    coefficients, low, high = (arrays[name] for name in NORMS)
    if not coding:
        return None
    try:
        count = len(design_names(coding))
        numbers = [code[key] for code in coding.values() if "mean" in code for key in ("mean", "sd", "low", "high")]
        is_known = np.isfinite(np.array(numbers, dtype=float)).all()
    except (KeyError, TypeError) as error:
        raise ValueError("coding is none") from error
    used = np.isfinite(coefficients).all(axis=(1, 2))
    if not (is_known and count <= MAX_COLUMNS and used[:count].all() and (low <= high).all()):
        raise ValueError("coding and coefficients differ")
    return Norms(coding, coefficients[:count], low, high)


def contradiction(state: Mapping[str, torch.Tensor], organs: Mapping[int, str]) -> str:
    """Describe why weights cannot be those of a fit; "" if they can."""
    try:
        thresholds = stored_thresholds(state, organs)
    except (ValueError, RecursionError):
        return "about, or coding with its coefficients, is not that of a fit"
    low, high, quantiles, count = thresholds.low, thresholds.high, thresholds.quantiles, thresholds.voting.sum()
    if not 1 <= thresholds.votes <= count:
        return f"votes is {thresholds.votes} for {count} voting features"
    if not 0 < thresholds.missing_percent <= 100:
        return f"missing_percent is {thresholds.missing_percent}"
    for name in ("present_percent", "contact_percent"):
        shares = state[name].numpy()
        if not ((shares >= 0) & (shares <= 100) | np.isnan(shares)).all():
            return f"{name} is not from 0 to 100"
    medians, spreads = thresholds.reference or (np.zeros(1), np.ones(1))
    if np.isinf(medians).any() or not ((spreads > 0) & (spreads < np.inf) | np.isnan(spreads)).all():
        return "reference has medians that are infinite, or spreads that are not above 0"
    known, lower, upper = ~np.isnan(quantiles), quantiles[:-1], quantiles[1:]
    checks = {
        "subjects is negative": np.broadcast_to(thresholds.subjects[:, None] < 0, low.shape),
        "subjects is above the number of cases": np.broadcast_to(
            thresholds.subjects[:, None] > thresholds.cases, low.shape
        ),
        "low or high is NaN": np.isnan(low) | np.isnan(high),
        "low is above high": (low > high) | (low == np.inf) | (high == -np.inf),
        "quantiles are infinite": np.isinf(quantiles).any(axis=0),
        "quantiles are NaN in part": known.any(axis=0) != known.all(axis=0),
        "quantiles are not ascending": (upper < lower * (1 - 1e-9 * np.sign(lower))).any(axis=0),  # but for rounding
    }
    for problem, wrong in checks.items():
        if wrong.any():
            organ, feature = np.argwhere(wrong)[0]
            return f"{problem} for {list(organs.values())[organ]}, {FEATURES[feature]}"
    return ""
