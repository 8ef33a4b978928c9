"""The features of a case as one array, and the tables of many cases that come of such arrays."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from scripts.labels import ORGANS
from scripts.solf.anatomy import with_anatomy
from scripts.solf.features import label_shape_features

IGNORE = 255
"""What marks rejected voxels, for losses to leave out."""

_EMPTY = label_shape_features(np.zeros((1, 1, 1), np.uint8), np.eye(4))
_DTYPES = with_anatomy(_EMPTY, ORGANS).dtypes.drop("label")
COLUMNS = tuple(_DTYPES.index)
"""Columns of the array of a case: those of `label_shape_features`, then those of `with_anatomy`."""


def read_label_table(path: str | Path = "") -> dict[int, str]:
    """Read which labels there are.

    Args:
        path: JSON file of label id to name, such as `{"1": "spleen"}`; "" takes the 72 organs of `scripts.labels`.

    Returns:
        Label id to name, ascending, without the background 0.

    Raises:
        ValueError: the file holds no such table, or ids outside 1..254, as 255 marks rejected voxels.
    """
    if not path:
        return dict(ORGANS)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        table = {int(label): str(name) for label, name in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f'{path}: holds no label table ({error}): give JSON such as {{"1": "spleen"}}.') from error
    table = {label: table[label] for label in sorted(table) if label}
    if not table or min(table) < 0 or max(table) >= IGNORE:
        raise ValueError(f"{path}: holds {len(table)} labels up to {max(table, default=0)}: give ids from 1 to 254.")
    return table


def case_features(label: np.ndarray, affine: np.ndarray, organs: Mapping[int, str]) -> np.ndarray:
    """Measure one label map.

    Args:
        label: label ids, (I, J, K).
        affine: voxel indices to mm, (4, 4).
        organs: label id to name.

    Returns:
        (L, C) float64: a row per organ, NaN for those that the map lacks; a column per name of `COLUMNS`.

    Raises:
        ValueError: the map holds no labels or others than `organs`, or `label_shape_features` refuses it.
    """
    shapes = with_anatomy(label_shape_features(label, affine), organs)
    present = shapes["label"].to_numpy()
    strangers = sorted(set(present.tolist()) - set(organs))
    if strangers:
        named = ", ".join(map(str, strangers[:8])) + (", ..." if len(strangers) > 8 else "")
        raise ValueError(
            f"holds {len(strangers)} labels that the label table lacks: {named}; give --label_table, or --label_names "
            "where the organs have other ids; an image is no label map."
        )
    if not len(present):
        raise ValueError("holds no labels: leave it out.")
    features = np.full((len(organs), len(COLUMNS)), np.nan)
    features[np.searchsorted(list(organs), present)] = shapes[list(COLUMNS)].to_numpy(dtype=float)
    return features


def feature_table(features: np.ndarray, organs: Mapping[int, str]) -> pd.DataFrame:
    """Turn the (L, C) array of a case into a row per label that it has: `label`, `organ` and `COLUMNS`."""
    return cohort_table([("", features)], organs).drop(columns="case")


def cohort_table(cases: Iterable[tuple[str, np.ndarray]], organs: Mapping[int, str]) -> pd.DataFrame:
    """Put the arrays of named cases into one table, with `case` in front."""
    names, arrays = zip(*cases, strict=True)
    features = np.stack(arrays)
    case, organ = np.nonzero(~np.isnan(features[:, :, 0]))
    rows = pd.DataFrame(features[case, organ], columns=list(COLUMNS)).astype(_DTYPES.to_dict())
    rows.insert(0, "case", np.array(names, dtype=object)[case])
    rows.insert(1, "label", np.array(list(organs))[organ])
    rows.insert(2, "organ", np.array(list(organs.values()), dtype=object)[organ])
    return rows


def packed(features: np.ndarray) -> bytes:
    """Return the array of a case as bytes, for a journal."""
    return zlib.compress(np.ascontiguousarray(features, dtype="<f8").tobytes(), level=1)


def unpacked(payload: bytes) -> np.ndarray:
    """Return what `packed` took."""
    return np.frombuffer(zlib.decompress(payload), dtype="<f8").reshape(-1, len(COLUMNS))
