"""Label maps that people fixed by hand: finding them, and putting them in place of what was read."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from zlib_ng import gzip_ng

from scripts.common.errors import InputError
from scripts.common.fingerprint import file_state
from scripts.common.grids import Grid, GridArray, describe_mismatch
from scripts.common.names import is_nifti, listed, listed_unknown, printable, stem
from scripts.io.nifti import StoredVolume, read_nifti
from scripts.solf.lookup import count_labels
from scripts.solf.renaming import Renaming
from scripts.solf.tables import IGNORE
from scripts.solf.transforms import label_values, read_labels
from scripts.solf.verdicts import settled

if TYPE_CHECKING:
    import pandas as pd

CROP_SUFFIX = "_labels"
_BESIDE_CROPS = (".itksnap", "_image.nii.gz", "labels.ctbl", "labels.label.txt")
_TOLERANCE_VOXELS = 1e-3
_NS = 10**9
logger = logging.getLogger(__name__)


def add_fixed(cases: Sequence[Mapping[str, Any]], fixed: str | Path) -> list[dict[str, Any]]:
    """Add to each case its fixed files as text, for `FixLabelsd`; "" without any.

    They are part of the case, so that a journal processes a case again if one is added, changed or removed. Crops
    that are as `scripts.solf.report.crops` wrote them do not count. What fits no case is named in a warning.

    Args:
        cases: `{"case": name, ...}`.
        fixed: folder of whole maps, `<case>.nii.gz`, and crops, `<case>/*_labels.nii.gz`; "" for none, which changes
            nothing.

    Raises:
        InputError: it is not a folder, or cannot be read.
    """
    if not fixed:
        return [dict(case) for case in cases]
    folder, names = Path(fixed), [case["case"] for case in cases]
    found, others = _files(folder)
    if unknown := sorted(found.keys() - {*names}):
        logger.warning("fixed %s: no case is named %s", printable(folder), listed_unknown(unknown, names))
    if others:
        left = listed(sorted(str(path.relative_to(folder)) for path in others))
        logger.warning("fixed %s: left out what is neither <case>.nii.gz nor a crop: %s", printable(folder), left)
    states: dict[str, list[list[Any]]] = {name: [] for name in names}
    counts = {"map": 0, "crop": 0, "": 0}
    for name, own in states.items():
        for kind, path in found.get(name, []):
            known = "" if kind == "crop" and _is_as_written(path) else kind
            counts[known] += 1
            own += [[kind, *file_state(path)]] if known else []
    message = "fixed %s: %d whole maps, %d crops, and %d crops that nobody changed"
    logger.info(message, printable(folder), *counts.values())
    texts = {name: json.dumps(own) for name, own in states.items() if own}
    return [{**case, "fixed": texts.get(case["case"], "")} for case in cases]


def _files(folder: Path) -> tuple[dict[str, list[tuple[str, Path]]], list[Path]]:
    """Return the fixed files by case, each as `map` or `crop`, and other files.

    Raises:
        InputError: it is not a folder, or cannot be read.
    """
    found: dict[str, list[tuple[str, Path]]] = {}
    others = []
    try:
        for entry in sorted(folder.iterdir()):
            for path in sorted(entry.iterdir()) if entry.is_dir() else [entry]:
                if is_nifti(path) and path == entry:
                    found.setdefault(stem(path), []).append(("map", path))
                elif is_nifti(path) and stem(path).endswith(CROP_SUFFIX):
                    found.setdefault(entry.name, []).append(("crop", path))
                elif not path.name.startswith(".") and not path.name.endswith(_BESIDE_CROPS):
                    others.append(path)
    except OSError as error:
        raise InputError(f"fixed {printable(folder)}: cannot be read ({error.strerror}); give a folder.") from error
    return found, others


def crop_mark(labels: np.ndarray) -> str:
    """Return the text by which a crop that nobody changed is known; `scripts.solf.report.crops` writes it."""
    return f"as written {labels.shape} {zlib.crc32(labels.astype('<u2').tobytes(order='F')):08x}"


def _is_as_written(path: Path) -> bool:
    """Return whether a crop still holds what was written; false for a file of another program."""
    try:
        volume = read_nifti(path, open_gzip=gzip_ng.open, drop_axes=True)
        labels = label_values(volume, path)
    except InputError:  # which then fails its case
        return False
    return volume.header["descrip"].item().decode(errors="replace") == crop_mark(labels)


class FixLabelsd(MapTransform):
    """Put fixed files in place of what was read, and leave out verdicts that are older.

    A file changes the voxels in which it differs from the map, so that a crop that was not edited changes nothing. The
    result has `meta["fixed"]`, which `changes_of` reads.

    Args:
        keys: label maps of `scripts.solf.transforms.LoadLabelMapd`, (1, X, Y, Z), of a case of `add_fixed`.
        label_table: as there.
        label_names: as there; whole maps hold the same ids as the map of their case, crops those of `label_table`.
        ignore_id: as there.

    Raises:
        InputError: a file cannot be read, holds other labels or lies elsewhere, or two change a voxel differently.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        label_table: str | Path = "",
        label_names: str | Path = "",
        ignore_id: int = IGNORE,
    ) -> None:
        super().__init__(keys)
        self.renaming = Renaming(label_table=label_table, label_names=label_names, ignore_id=ignore_id)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Fix the label maps of a case."""
        d = dict(data)
        for key in self.key_iterator(d) if d.get("fixed") else ():
            meta = dict(d[key].meta)
            whole = GridArray(d[key].as_tensor()[0].numpy(), d[key].affine.numpy())
            parts = []
            for kind, path, *state in json.loads(d["fixed"]):
                if kind == "map":
                    volume, meta["sources"] = read_labels(path, self.renaming)
                    _check_grid(volume.grid, whole.grid, path)
                else:
                    volume = _read_crop(path, self.renaming)
                parts.append(_Part(kind, path, state[-1] // _NS, volume.stored, _box(volume.grid, whole.grid, path)))
            labels, changes = _pasted(whole.array, parts, ignore_id=self.renaming.ignore_id)
            meta["fixed"] = json.dumps(changes)
            d[key] = MetaTensor(torch.from_numpy(labels)[None], meta=meta)
            if d.get("verdicts"):
                d["verdicts"] = settled(d["verdicts"], changes_of(meta["fixed"]))
        return d


class _Part(NamedTuple):
    """What a fixed file holds, (I, J, K), and where this lies in the map of its case."""

    kind: str
    path: str
    seconds: int
    labels: np.ndarray
    box: tuple[slice, ...]


def _read_crop(path: str, renaming: Renaming) -> StoredVolume:
    """Read a crop, with ids of the label table as uint8 or uint16.

    Raises:
        InputError: it cannot be read, or holds other labels.
    """
    volume = read_nifti(path, open_gzip=gzip_ng.open, drop_axes=True)
    labels = label_values(volume, path, ignore_id=renaming.ignore_id)
    if unknown := sorted(set(count_labels(labels)) - {*renaming.organs, renaming.ignore_id}):
        raise InputError(f"{printable(path)}: holds {unknown[0]}, which the label table lacks; correct its labels.")
    return replace(volume, stored=labels, slope=1.0, inter=0.0)


def _check_grid(grid: Grid, whole: Grid, path: str) -> None:
    if mismatch := describe_mismatch(grid, whole):
        raise InputError(f"{printable(path)}: another grid than the map of its case: {mismatch}; save it on that grid.")


def _box(grid: Grid, whole: Grid, path: str) -> tuple[slice, ...]:
    """Return where a grid lies in another one.

    Raises:
        InputError: its voxels are not those of the other grid, or lie outside.
    """
    corners = np.array([*product(*((0, size) for size in grid.shape))])
    places = nib.affines.apply_affine(np.linalg.inv(whole.affine) @ grid.affine, corners)
    first = np.round(places[0]).astype(int)
    if (off := np.abs(places - first - corners).max()) > _TOLERANCE_VOXELS:
        raise InputError(
            f"{printable(path)}: its voxels are not those of the map of its case, but up to {off:.3g} voxels away; "
            "save it on the grid of the crop that was written."
        )
    stop = first + grid.shape
    if (first < 0).any() or (stop > whole.shape).any():
        raise InputError(f"{printable(path)}: reaches beyond the map of its case; cut it to that.")
    return tuple(map(slice, first.tolist(), stop.tolist()))


def _pasted(
    labels: np.ndarray, parts: Sequence[_Part], *, ignore_id: int
) -> tuple[np.ndarray, dict[int, tuple[str, int]]]:
    """Return a label map with the changes of fixed files, and the changed labels as `changes_of` gives them.

    Raises:
        InputError: two files change a voxel differently.
    """
    pasted = labels.astype(np.result_type(labels, *(part.labels for part in parts)))
    changes: dict[int, tuple[str, int]] = {}
    for part in parts:
        old, now = labels[part.box], pasted[part.box]
        changed = part.labels != old
        if (clash := changed & (now != old) & (now != part.labels)).any():
            i, j, k = (int(n + own.start) for n, own in zip(np.argwhere(clash)[0], part.box, strict=True))
            others = listed([Path(other.path).name for other in parts if other.path != part.path])
            raise InputError(
                f"{printable(part.path)}: changes {clash.sum()} voxels in another way than other fixed files of this "
                f"case ({others}), such as {i}, {j}, {k}; make them agree, or delete one."
            )
        now[changed] = part.labels[changed]
        for label in np.union1d(old[changed], part.labels[changed]).tolist():
            if label not in (0, ignore_id):
                seconds = max(part.seconds, changes.get(label, ("", 0))[1])
                changes[label] = (part.kind, seconds)
    return pasted, changes


def changes_of(fixed: str) -> dict[int, tuple[str, int]]:
    """Return each label that fixed files changed, with the kind of file, `map` or `crop`, and when it was changed.

    Args:
        fixed: `meta["fixed"]` of `FixLabelsd`; "" for none. Times are seconds since 1970, in UTC.
    """
    return {int(label): (kind, seconds) for label, (kind, seconds) in json.loads(fixed or "{}").items()}


def with_kinds(decisions: pd.DataFrame, changes: Mapping[tuple[str, int], tuple[str, int]]) -> pd.DataFrame:
    """Add the column `fixed`: by which kind of file a label was changed, `map` or `crop`, or "".

    Args:
        decisions: with `case` and `label`.
        changes: what `changes_of` gives, by case and label.
    """
    keys = zip(decisions["case"], decisions["label"], strict=True)
    return decisions.assign(fixed=[changes.get(key, ("", 0))[0] for key in keys])
