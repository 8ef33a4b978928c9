"""Class ids of label maps: checking, counting and renumbering, of NumPy arrays and tensors without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scripts.common.errors import InputError

if TYPE_CHECKING:
    import torch

MAX_CLASS_ID = 65535


def as_label_array(volume: np.ndarray | torch.Tensor, *, name: str) -> np.ndarray:
    """Return a label map as an array of integers, without a copy if it has an integer dtype.

    Args:
        volume: class ids of any dtype, an array or a tensor on any device.
        name: named in the message.

    Raises:
        InputError: a voxel is not a whole number.
    """
    array = volume.detach().cpu().numpy() if hasattr(volume, "detach") else np.asarray(volume)
    if np.issubdtype(array.dtype, np.integer):
        return array
    with np.errstate(invalid="ignore"):  # of NaN, which is refused below
        whole = array.astype(np.int32)
    if array.dtype != bool and not np.array_equal(whole, array):
        value = float(array[whole != array][0])
        raise InputError(f"{name} holds {value:g}, not a class id: resample label maps with nearest neighbour.")
    return whole


def count_voxels(label_map: np.ndarray) -> np.ndarray:
    """Count the voxels of each class id from 0 to the highest.

    Args:
        label_map: class ids, integers.

    Shape:
        (X, Y, Z) becomes (highest id + 1,).

    Raises:
        InputError: a class id is negative, or above `MAX_CLASS_ID`, for which the counts would take gigabytes.
    """
    if label_map.min(initial=0) < 0:
        raise InputError(f"the label map holds {label_map.min()}: class ids start at 0, renumber it.")
    if label_map.max(initial=0) > MAX_CLASS_ID:
        raise InputError(f"the label map holds {label_map.max()}: class ids end at {MAX_CLASS_ID}, renumber it.")
    n = int(label_map.max(initial=0)) + 1
    counts = np.zeros(n, dtype=np.int64)
    for plane in label_map:  # bincount casts to int64: 8 bytes a voxel for a whole volume
        counts += np.bincount(plane.ravel(), minlength=n)
    return counts


def renumber(label: torch.Tensor, values: Mapping[int, int]) -> torch.Tensor:
    """Replace class ids, all at once, so that two can be swapped.

    Args:
        label: class ids, any shape.
        values: class id to its new value; other ids stay.

    Returns:
        A new tensor if an id changes, else `label`.
    """
    changes = {class_id: value for class_id, value in values.items() if class_id != value}
    changed = label.clone() if changes else label
    for class_id, value in changes.items():
        changed[label == class_id] = value
    return changed
