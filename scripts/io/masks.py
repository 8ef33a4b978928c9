"""Label maps that are stored as one mask per organ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np


class NamedLabels(NamedTuple):
    """A label map made of masks.

    Attributes:
        labels: (X, Y, Z), uint8, or uint16 if an id is above 255.
        voxels: name to number of voxels of each mask that is not empty.
        overlap: number of voxels that belong to organs of several ids.
    """

    labels: np.ndarray
    voxels: dict[str, int]
    overlap: int


def in_order(names: Iterable[str], ids: Mapping[str, int], *, ignore_id: int) -> list[tuple[str, int]]:
    """Return (name, id) in the order in which `combine_masks` needs the masks: what is ignored, then by ascending id.

    Args:
        names: of the masks.
        ids: name to label id; masks of other names are ignored.
        ignore_id: value of ignored voxels.
    """
    found = [(name, ids.get(name, ignore_id)) for name in names]
    return sorted(found, key=lambda item: (item[1] != ignore_id, item[1], item[0]))


def combine_masks(
    masks: Iterable[tuple[str, int, np.ndarray]], shape: tuple[int, ...], *, ignore_id: int, highest_id: int
) -> NamedLabels:
    """Combine masks; where organs overlap, the highest id is kept, whatever the order of the files.

    Args:
        masks: name, label id and bool array (X, Y, Z), in the order of `in_order`; read one at a time.
        shape: of all masks.
        ignore_id: value of ignored voxels; a voxel of another label is never ignored.
        highest_id: highest label id.
    """
    dtype = np.uint8 if max(highest_id, ignore_id) <= np.iinfo(np.uint8).max else np.uint16
    labels, voxels, overlap = np.zeros(shape, dtype=dtype, order="F"), {}, np.zeros(shape, dtype=bool, order="F")
    for name, label, mask in masks:
        if count := int(np.count_nonzero(mask)):
            voxels[name] = count
            overlap |= mask & (labels != 0) & (labels != ignore_id) & (labels != label)
            labels[mask] = label
    return NamedLabels(labels, voxels, int(np.count_nonzero(overlap)))
