"""Where the network looks after it has seen the whole volume: windows around what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from monai.data.utils import dense_patch_slices

OVERLAP = 0.5
_STEPS = 8


@dataclass(frozen=True)
class Zoom:
    """Windows of a volume.

    Attributes:
        starts: first voxel of each window; negative ones where the volume is padded.
        low: first voxel that windows show; others are 0, and are not replaced.
        high: last one.
        shift: what to subtract from the coordinates of a prompt if there is a single window; the window's start, unless
            it is to be wrong as in the published code.
    """

    starts: list[tuple[int, ...]]
    low: np.ndarray
    high: np.ndarray
    shift: np.ndarray


def windows_around(box: np.ndarray, shape: Sequence[int], window: Sequence[int]) -> Zoom:
    """Return windows that cover a box.

    They start at multiples of an eighth of their size where they can, so that prompts of the same region share the
    embeddings of windows. Where the volume is smaller than a window, it lies in its middle.

    Args:
        box: (6,), first and last voxel.
        shape: of the volume.
        window: size of a window.
    """
    axes = [_starts(*each) for each in zip(box[:3].tolist(), box[3:].tolist(), shape, window, strict=True)]
    starts = list(product(*axes))
    return Zoom(starts, np.zeros(3, dtype=np.int64), np.asarray(shape) - 1, np.array(starts[0]))


def _starts(low: int, high: int, n: int, size: int) -> list[int]:
    """Return the starts of windows along an axis."""
    if n <= size:
        return [-((size - n) // 2)]
    grid, last = max(1, size // _STEPS), n - size
    if high - low < size:
        centred = (low + high + 1 - size) / 2
        for start in (round(centred / grid) * grid, round(centred)):
            start = min(max(start, 0), last)
            if start <= low and high < start + size:
                return [start]
        return [min(max(low, 0), last)]
    stride, starts = int(size * (1 - OVERLAP)), [min(low // grid * grid, last)]
    while starts[-1] + size <= high:
        starts.append(min(starts[-1] + stride, last))
    return starts


def published_windows(box: np.ndarray, shape: Sequence[int], window: Sequence[int]) -> Zoom:
    """Return the windows of the published code: those of a region that is padded if it is smaller than a window.

    Its fault is kept: of a single window, prompts are not shifted by the padding.

    Args:
        box: (6,), first and last voxel of the global prediction.
        shape: of the volume.
        window: size of a window.
    """
    shape, window = np.asarray(shape), np.asarray(window)
    margin = np.maximum(0, window - (box[3:] - box[:3] + 1)) // 2
    low, high = np.maximum(0, box[:3] - margin), np.minimum(shape - 1, box[3:] + margin)
    size = high - low + 1
    pad = np.maximum(0, window - size)
    stride = [int(n * (1 - OVERLAP)) for n in window]
    found = dense_patch_slices(tuple(size + pad), tuple(window), stride)
    starts = [tuple(int(part.start) for part in one) for one in found]
    return Zoom([tuple((low - pad // 2 + one).tolist()) for one in starts], low, high, low)


def cut(volume: torch.Tensor, start: Sequence[int], size: Sequence[int], zoom: Zoom) -> torch.Tensor:
    """Cut a window out of a volume (D, H, W), with 0 where the zoom shows nothing."""
    inner, outer = inside(start, size, zoom)
    window = volume.new_zeros(tuple(size))
    window[inner] = volume[outer]
    return window


def inside(start: Sequence[int], size: Sequence[int], zoom: Zoom) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return which part of a window the zoom shows, as slices of the window and of the volume."""
    firsts = [max(s, int(low)) for s, low in zip(start, zoom.low, strict=True)]
    stops = [min(s + n, int(high) + 1) for s, n, high in zip(start, size, zoom.high, strict=True)]
    outer = tuple(slice(first, stop) for first, stop in zip(firsts, stops, strict=True))
    return tuple(slice(o.start - s, o.stop - s) for o, s in zip(outer, start, strict=True)), outer
