"""What the network shows of a whole volume that was resized to its size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scripts.segvol.frames import box_of

QUANTA = 255
"""Stands for a probability of 1; a voxel belongs to a structure from 128."""


class Coarse:
    """Logits of the resized volume as they lie in the volume: each voxel has those of the nearest one.

    Args:
        logits: (d, h, w).
        shape: of the volume.
        aligned: compare the middles of voxels, as the volume was resized; false compares their first corners, as the
            published code does, which moves the result by up to half a voxel of the resized volume.
    """

    def __init__(self, logits: torch.Tensor, shape: Sequence[int], *, aligned: bool = True) -> None:
        pairs = zip(shape, logits.shape, strict=True)
        self.logits = logits
        self.places = [(2 * torch.arange(n, device=logits.device) + aligned) * m // (2 * n) for n, m in pairs]

    def spread(self, values: torch.Tensor, area: Sequence[slice] = (slice(None),) * 3) -> torch.Tensor:
        """Return values of the resized volume in a part of the volume."""
        d, h, w = (places[part].to(values.device) for places, part in zip(self.places, area, strict=True))
        return values[:, :, w][:, h][d]  # slices last: the others are gathered while there are few

    def at(self, area: Sequence[slice]) -> torch.Tensor:
        """Return the logits of a part of the volume."""
        return self.spread(self.logits, area)

    def box(self) -> np.ndarray | None:
        """Return the box of what they show, in the volume."""
        shown, counts = zip(*(places.unique_consecutive(return_counts=True) for places in self.places), strict=True)
        d, h, w = shown  # the voxels of the resized volume that lie in the volume at all
        box = box_of((self.logits > 0)[d][:, h][:, :, w])
        if box is None:
            return None
        ends = [count.cumsum(0) for count in counts]
        low = [int(end[i] - count[i]) for end, count, i in zip(ends, counts, box[:3], strict=True)]
        return np.array([*low, *(int(end[i]) - 1 for end, i in zip(ends, box[3:], strict=True))])


def quantized(logits: torch.Tensor) -> torch.Tensor:
    """Return probabilities in 1/255, uint8, on the CPU."""
    return (logits.sigmoid() * QUANTA).round_().to("cpu", torch.uint8)
