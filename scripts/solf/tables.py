"""Label tables, the features of a case as one array, and the table of many such arrays."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scripts.common.errors import InputError
from scripts.common.label_maps import MAX_CLASS_ID
from scripts.common.names import printable
from scripts.common.organs import ORGANS

if TYPE_CHECKING:
    import pandas as pd

IGNORE = 255
"""Default of `ignore_id`, the value of ignored and of rejected voxels, which a loss has to leave out."""

_SHAPE = ("volume_mm3", "mesh_volume_mm3", "surface_area_mm2", "sphericity", "eccentricity", "elongation", "flatness")
_AXES = ("major_axis_mm", "minor_axis_mm", "least_axis_mm", "centroid_x_mm", "centroid_y_mm", "centroid_z_mm")
_BOX = ("i_start", "j_start", "k_start", "i_stop", "j_stop", "k_stop")
_FIELD_OF_VIEW = tuple(f"fov_{axis}_{end}_mm" for axis in "xyz" for end in ("min", "max"))
_DTYPES = {
    "voxel_count": "int64",
    **dict.fromkeys((*_SHAPE, *_AXES), "float64"),
    **dict.fromkeys(_BOX, "int64"),
    "touches_border": "bool",
    **dict.fromkeys(("components", "euler_number"), "int64"),
    **dict.fromkeys(("normalized_volume", *_FIELD_OF_VIEW), "float64"),
    **dict.fromkeys(("asymmetry", "offset_x", "offset_y", "offset_z"), "float64"),
}
COLUMNS = tuple(_DTYPES)
"""Columns of the array of a case: those of `scripts.solf.features`, then those of `scripts.solf.anatomy`."""

DESCRIBED = {
    **dict.fromkeys(("volume_mm3", "asymmetry", "components", "euler_number"), "float64"),
    "touches_border": "boolean",
}
"""Columns of a table of features that stand in its decisions too, whether they vote or not; types that have NaN."""


def read_label_table(path: str | Path = "", *, ignore_id: int | None = None) -> dict[int, str]:
    """Read a label table.

    Args:
        path: JSON file of label id to name, such as `{"1": "spleen"}`; "" for the 72 of `scripts.common.organs`.
        ignore_id: value of ignored voxels, which no label may have.

    Returns:
        Label id to name, ascending, without the background 0.

    Raises:
        InputError: the file holds no such table, repeated ids or names, ids outside 1..65535, or `ignore_id`.
    """
    table = _read_table(path) if path else dict(ORGANS)
    if ignore_id in table:
        where = printable(path) if path else "the table of the 72 organs"
        raise InputError(
            f"{where}: the label {table[ignore_id]!r} has the id {ignore_id}, which is ignore_id, the value of ignored "
            f"voxels; set ignore_id to an id that no label has, such as {max(table) + 1}."
        )
    return table


def _read_table(path: str | Path) -> dict[int, str]:
    where = printable(path)
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)
        names = Counter(name.strip() for label, name in table.items() if label)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f'{where}: is not a label table ({error}); give JSON such as {{"1": "spleen"}}.') from error
    table = {label: table[label].strip() for label in sorted(table) if label}
    outside = [label for label in table if not 0 < label <= MAX_CLASS_ID]
    if outside or not table:
        found = f"the id {outside[0]}" if outside else "no label"
        raise InputError(f"{where}: holds {found}; give ids from 1 to {MAX_CLASS_ID}.")
    if repeated := [name for name, count in names.items() if count > 1 or not name]:
        raise InputError(f"{where}: the name {repeated[0]!r} is empty or repeats; give each label a name of its own.")
    return table


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[int, Any]:
    """Return a JSON object with whole numbers as keys.

    Raises:
        ValueError: a key is not a whole number, or repeats.
    """
    table = {int(label): name for label, name in pairs}
    if len(table) < len(pairs):
        raise ValueError("an id repeats")
    return table


def feature_table(features: np.ndarray, organs: Mapping[int, str]) -> pd.DataFrame:
    """Turn the (L, C) array of a case into a table, a row per label that it has: `label`, `organ` and `COLUMNS`."""
    return cohort_table([("", features)], organs).drop(columns="case")


def cohort_table(cases: Iterable[tuple[str, np.ndarray]], organs: Mapping[int, str]) -> pd.DataFrame:
    """Turn the arrays of named cases into one table, with `case` as its first column."""
    import pandas as pd  # here, so that programs without it can use the filter

    names, arrays = zip(*cases, strict=True)
    features = np.stack(arrays)
    case, organ = np.nonzero(~np.isnan(features[:, :, 0]))
    rows = pd.DataFrame(features[case, organ], columns=list(COLUMNS)).astype(_DTYPES)
    rows.insert(0, "case", np.array(names, dtype=object)[case])
    rows.insert(1, "label", np.array(list(organs))[organ])
    rows.insert(2, "organ", np.array(list(organs.values()), dtype=object)[organ])
    return rows


def described(table: pd.DataFrame, *, without: Collection[str]) -> dict[str, pd.Series]:
    """Return the columns `DESCRIBED` that a table of features has, but for those in `without`."""
    return {name: table[name].astype(kind) for name, kind in DESCRIBED.items() if name in {*table} - {*without}}


class Result(NamedTuple):
    """The result of a case in a journal.

    Attributes:
        content: what was measured.
        sources: what `scripts.solf.renaming` counted in its file.
        contacts: which labels touch, see `scripts.solf.contacts`.
        fixed: what `scripts.solf.fixing` changed.
        sha256: of the label map, see `scripts.common.files.input_sha256`; "" if it was not cleaned.
    """

    content: bytes
    sources: str = ""
    contacts: str = ""
    fixed: str = ""
    sha256: str = ""

    @property
    def features(self) -> np.ndarray:
        """The (L, C) array of `pack_features`."""
        return np.frombuffer(self.content, dtype="<f8").reshape(-1, len(COLUMNS))


def pack(content: bytes, *, sources: str = "", contacts: str = "", fixed: str = "", sha256: str = "") -> bytes:
    """Compress a `Result` for a journal."""
    given = [sources, contacts, fixed, sha256]
    texts = json.dumps(given) if any(given) else ""
    return b"".join(zlib.compress(part, level=1) for part in (content, texts.encode()) if part)


def unpack(payload: bytes) -> Result:
    """Return what `pack` compressed."""
    reader = zlib.decompressobj()
    content = reader.decompress(payload)
    return Result(content, *(json.loads(zlib.decompress(reader.unused_data)) if reader.unused_data else ()))


def pack_features(features: np.ndarray, **texts: str) -> bytes:
    """Compress the (L, C) array of a case for a journal, with texts as `pack`."""
    return pack(np.ascontiguousarray(features, dtype="<f8").tobytes(), **texts)
