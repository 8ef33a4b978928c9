"""Label tables, the features of a case as one array, and the table of many such arrays."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS

IGNORE = 255
"""Value of rejected voxels, which a loss has to leave out."""

_SHAPE = ("volume_mm3", "mesh_volume_mm3", "surface_area_mm2", "sphericity", "eccentricity", "elongation", "flatness")
_AXES = ("major_axis_mm", "minor_axis_mm", "least_axis_mm", "centroid_x_mm", "centroid_y_mm", "centroid_z_mm")
_BOX = ("i_start", "j_start", "k_start", "i_stop", "j_stop", "k_stop")
_DTYPES = {
    "voxel_count": "int64",
    **dict.fromkeys((*_SHAPE, *_AXES), "float64"),
    **dict.fromkeys(_BOX, "int64"),
    "touches_border": "bool",
    "components": "int64",
    **dict.fromkeys(("normalized_volume", "asymmetry", "offset_x", "offset_y", "offset_z"), "float64"),
}
COLUMNS = tuple(_DTYPES)
"""Columns of the array of a case: those of `scripts.solf.features`, then those of `scripts.solf.anatomy`."""


def read_label_table(path: str | Path = "") -> dict[int, str]:
    """Read a label table.

    Args:
        path: JSON file of label id to name, such as `{"1": "spleen"}`; "" for the 72 of `scripts.common.organs`.

    Returns:
        Label id to name, ascending, without the background 0.

    Raises:
        InputError: the file holds no such table, or ids outside 1..254; 255 is the value of rejected voxels.
    """
    if not path:
        return dict(ORGANS)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        table = {int(label): str(name) for label, name in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f'{path}: is not a label table ({error}); give JSON such as {{"1": "spleen"}}.') from error
    table = {label: table[label] for label in sorted(table) if label}
    if not table or min(table) < 0 or max(table) >= IGNORE:
        raise InputError(f"{path}: holds {len(table)} labels up to {max(table, default=0)}; give ids from 1 to 254.")
    return table


def feature_table(features: np.ndarray, organs: Mapping[int, str]) -> pd.DataFrame:
    """Turn the (L, C) array of a case into a table, a row per label that it has: `label`, `organ` and `COLUMNS`."""
    return cohort_table([("", features)], organs).drop(columns="case")


def cohort_table(cases: Iterable[tuple[str, np.ndarray]], organs: Mapping[int, str]) -> pd.DataFrame:
    """Turn the arrays of named cases into one table, with `case` as its first column."""
    names, arrays = zip(*cases, strict=True)
    features = np.stack(arrays)
    case, organ = np.nonzero(~np.isnan(features[:, :, 0]))
    rows = pd.DataFrame(features[case, organ], columns=list(COLUMNS)).astype(_DTYPES)
    rows.insert(0, "case", np.array(names, dtype=object)[case])
    rows.insert(1, "label", np.array(list(organs))[organ])
    rows.insert(2, "organ", np.array(list(organs.values()), dtype=object)[organ])
    return rows


def pack_features(features: np.ndarray) -> bytes:
    """Compress the array of a case, for a journal."""
    return zlib.compress(np.ascontiguousarray(features, dtype="<f8").tobytes(), level=1)


def unpack_features(payload: bytes) -> np.ndarray:
    """Return the array that `pack_features` compressed."""
    return np.frombuffer(zlib.decompress(payload), dtype="<f8").reshape(-1, len(COLUMNS))
