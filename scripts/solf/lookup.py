"""Replace and count the labels of a volume in one pass; NumPy's indexing and `bincount` first make 8 bytes of each."""

from __future__ import annotations

import numpy as np

from scripts.common.jit import compiled


def replace_labels(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a label map with other ids, in the order of memory of the given one.

    Args:
        labels: label ids, uint8 or uint16; not changed.
        values: (256,) or (65536,), the new id of each; uint8 or uint16, which becomes the type of the result.

    Shape:
        (X, Y, Z) stays.
    """
    replaced = np.empty_like(labels, dtype=values.dtype)
    _replace(_flat(labels), values, replaced.ravel(order="K"))
    return replaced


def count_labels(labels: np.ndarray) -> dict[int, int]:
    """Return the number of voxels of each label but 0, by ascending id; of uint8 or uint16 labels, (X, Y, Z)."""
    counts = np.zeros(np.iinfo(labels.dtype).max + 1, dtype=np.int64)
    _count(_flat(labels), counts)
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts) if label}


def _flat(labels: np.ndarray) -> np.ndarray:
    """Return the voxels as (N,), read-only so that numba compiles one version."""
    flat = labels.ravel(order="K").view()
    flat.flags.writeable = False
    return flat


@compiled
def _replace(labels, values, replaced):
    for index in range(len(labels)):
        replaced[index] = values[labels[index]]


@compiled
def _count(labels, counts):
    for label in labels:
        counts[label] += 1
