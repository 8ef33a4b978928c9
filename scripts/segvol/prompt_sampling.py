"""Prompts drawn from masks: boxes, points, and the same moved as an imprecise user would."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scripts.common.errors import InputError
from scripts.segvol.frames import box_of

MAX_MORE = 10
"""Of the points of a training prompt: so many positive ones besides the first, and so many negative ones, at most."""
MAX_POINTS = 1 + 2 * MAX_MORE


def tight_box(mask: np.ndarray) -> np.ndarray:
    """Return the first and last voxel of a mask along each axis, (6,): d, h, w, d, h, w; all -1 if it is empty.

    >>> tight_box(np.pad(np.ones((1, 2, 3)), 1)).tolist()
    [1, 1, 1, 1, 2, 3]
    """
    box = box_of(torch.as_tensor(mask))
    return np.full(6, -1) if box is None else box


def draw_points(
    mask: np.ndarray, rng: np.random.RandomState, *, positive: int, negative: int, length: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Draw different voxels in and outside of a mask.

    Args:
        mask: (D, H, W), a voxel belongs to it if it is not 0.
        rng: source of randomness.
        positive: number of points in the mask, fewer if it has fewer voxels.
        negative: number of points outside, likewise.
        length: number of rows returned.

    Returns:
        points (length, 3), voxel indices; labels (length,): 1 in the mask, 0 outside, -1 and the point (-1, -1, -1)
        for the rest.

    Raises:
        InputError: `length` is too small.
    """
    if positive + negative > length:
        raise InputError(f"{positive} positive and {negative} negative points: length is {length}, give as many.")
    points, labels = np.full((length, 3), -1), np.full(length, -1)
    first = 0
    for label, n in ((1, positive), (0, negative)):
        places = np.flatnonzero((mask != 0) == bool(label))
        chosen = places[_different(len(places), n, rng)]
        rows = slice(first, first + len(chosen))
        points[rows] = np.stack(np.unravel_index(chosen, mask.shape), axis=-1)
        labels[rows] = label
        first = rows.stop
    return points, labels


def _different(size: int, n: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw `n` different numbers below `size`, or all; without a permutation of millions where `n` is small."""
    if size <= 4 * n:
        return rng.permutation(size)[:n]
    found = np.unique(rng.randint(size, size=n))
    while len(found) < n:
        found = np.unique(np.append(found, rng.randint(size)))
    return rng.permutation(found)


def jittered_box(box: Sequence[int], shape: Sequence[int], rng: np.random.RandomState, *, share: float) -> np.ndarray:
    """Move each face of a box, both ends of an axis on their own.

    Args:
        box: (6,), inclusive, as of `tight_box`; one of -1 stays.
        shape: (D, H, W), the result lies inside.
        rng: source of randomness.
        share: a face moves by a uniform share of the extent of the box along its axis, from -`share` to `share`.

    Returns:
        (6,), of at least one voxel along each axis.

    >>> jittered_box([2, 2, 2, 5, 5, 5], (8, 8, 8), np.random.RandomState(0), share=0.0).tolist()
    [2, 2, 2, 5, 5, 5]
    """
    box = np.asarray(box)
    if (box < 0).all():
        return box
    extent = np.tile(box[3:] - box[:3] + 1, 2)
    moved = np.rint(box + extent * share * rng.uniform(-1, 1, 6)).astype(int)
    ends = np.sort(moved.reshape(2, 3), axis=0)
    return np.clip(ends, 0, np.array(shape) - 1).reshape(-1)


def jittered_points(
    points: np.ndarray, labels: np.ndarray, extent: Sequence[int], shape: Sequence[int], rng, *, share: float
) -> np.ndarray:
    """Move points by a uniform share of an organ's extent along each axis; those to ignore stay.

    Args:
        points: (N, 3), voxel indices.
        labels: (N,), -1 for points to ignore.
        extent: (3,), of the organ, in voxels.
        shape: (D, H, W), the result lies inside.
        rng: `numpy.random.RandomState`, source of randomness.
        share: from -`share` to `share` of half the extent.

    Returns:
        (N, 3).
    """
    moved = points + np.asarray(extent) / 2 * share * rng.uniform(-1, 1, points.shape)
    moved = np.clip(np.rint(moved).astype(int), 0, np.array(shape) - 1)
    return np.where(labels[:, None] < 0, points, moved)
