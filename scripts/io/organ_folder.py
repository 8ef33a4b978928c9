"""A folder with a binary file per organ, as TotalSegmentator writes it, read as one label map."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scripts.common.errors import InputError
from scripts.common.grids import describe_mismatch
from scripts.common.names import is_nifti, printable, stem
from scripts.io.masks import NamedLabels, combine_masks, in_order
from scripts.io.nifti import StoredVolume, read_nifti


def read_organ_folder(
    folder: Path,
    ids_of: Callable[[Iterable[str], Path], Mapping[str, int]],
    *,
    ignore_id: int,
    open_gzip: Callable[..., BinaryIO] = gzip.open,
) -> tuple[StoredVolume, NamedLabels]:
    """Read the masks of a folder, such as `spleen.nii.gz`, as one label map.

    Args:
        folder: its NIfTI files are masks on one grid: 0, and one other value inside the organ.
        ids_of: returns the label ids of the names, of which the others are ignored; the folder is for its messages.
        ignore_id: value of ignored voxels.
        open_gzip: see `read_nifti`.

    Returns:
        The label map with affine and header of the first file, and the same labels with their counts. Where organs
        overlap, the highest id is kept.

    Raises:
        InputError: the folder cannot be read or holds no mask, a file is not a mask, or has another grid.
    """
    try:
        files = {stem(path): path for path in sorted(folder.iterdir()) if is_nifti(path)}
    except OSError as error:
        raise InputError(f"{printable(folder)}: cannot be read ({error.strerror}); correct its permissions.") from error
    if not files:
        raise InputError(f"{printable(folder)}: holds no NIfTI files; give a folder with a file per organ.")
    ids = ids_of(files, folder)
    order = in_order(files, ids, ignore_id=ignore_id)
    first = read_nifti(files[order[0][0]], open_gzip=open_gzip, drop_axes=True)

    def masks() -> Iterator[tuple[str, int, np.ndarray]]:
        for name, label in order:
            volume = read_nifti(files[name], open_gzip=open_gzip, drop_axes=True)
            if mismatch := describe_mismatch(volume.grid, first.grid):
                other = printable(files[order[0][0]].name)
                raise InputError(f"{printable(files[name])}: another grid than {other}: {mismatch}; export it again.")
            yield name, label, _mask(volume, files[name])

    found = combine_masks(masks(), first.grid.shape, ignore_id=ignore_id, highest_id=max(ids.values()))
    return replace(first, stored=found.labels, slope=1.0, inter=0.0), found


def _mask(volume: StoredVolume, path: Path) -> np.ndarray:
    """Return where a mask is not 0, (X, Y, Z)."""
    inside = volume.stored != 0
    if volume.inter != 0 or (volume.stored[inside] != volume.stored.max()).any():
        low, high = volume.value_range
        raise InputError(f"{printable(path)}: holds values from {low:g} to {high:g}; give a mask of 0 and 1.")
    return inside
