"""Clicks of a user who corrects a mask, simulated from the label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cc3d
import numpy as np
from scipy.ndimage import distance_transform_edt

from scripts.segvol.prompt_sampling import tight_box

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes points (N, 3) and labels (N,) and returns a mask (D, H, W)."""


def next_click(
    pred: np.ndarray, label: np.ndarray, spacing: Sequence[float] = (1, 1, 1)
) -> tuple[np.ndarray, int] | None:
    """Click where the prediction is most wrong: in the middle of the largest region of wrong voxels.

    Missing voxels and those that are too much are regions of their own, 6-connected.

    Args:
        pred: (D, H, W), predicted mask.
        label: (D, H, W), true mask.
        spacing: of the voxels, for what is the middle.

    Returns:
        The voxel of the region that is farthest from its surface, (3,), and 1 if it is missing in the prediction, 0 if
        it is too much. None if nothing is wrong.

    >>> label = np.zeros((5, 5, 5), bool)
    >>> label[1:4, 1:4, 1:4] = True
    >>> place, kind = next_click(np.zeros_like(label), label)
    >>> place.tolist(), kind
    ([2, 2, 2], 1)
    """
    pred, label = np.asarray(pred, dtype=bool), np.asarray(label, dtype=bool)
    wrong = np.where(label & ~pred, np.uint8(1), np.where(pred & ~label, np.uint8(2), np.uint8(0)))
    regions = cc3d.connected_components(wrong, connectivity=6)
    sizes = np.bincount(regions.ravel())[1:]
    if not len(sizes):
        return None
    region = regions == 1 + int(sizes.argmax())
    first, last = np.split(tight_box(region), 2)
    part = np.pad(region[tuple(map(slice, first, last + 1))], 1)
    deepest = np.unravel_index(distance_transform_edt(part, sampling=spacing).argmax(), part.shape)
    place = first + np.array(deepest) - 1
    return place, int(label[tuple(place)])


def simulate_clicks(
    predict: Predict, label: np.ndarray, *, clicks: int, spacing: Sequence[float] = (1, 1, 1)
) -> Iterator[np.ndarray]:
    """Yield the prediction after each click, the first of which is in the middle of the largest part of the label.

    Args:
        predict: the network with the points so far as its prompt.
        label: (D, H, W), true mask, not empty.
        clicks: how many; the last prediction is repeated once nothing is wrong.
        spacing: see `next_click`.
    """
    points, labels = np.zeros((0, 3), dtype=int), np.zeros(0, dtype=int)
    pred = np.zeros(label.shape, dtype=bool)
    for _ in range(clicks):
        if (click := next_click(pred, label, spacing)) is not None:
            points, labels = np.vstack([points, click[0]]), np.append(labels, click[1])
            pred = np.asarray(predict(points, labels), dtype=bool)
        yield pred
