"""Clicks that correct what the network shows while it trains, drawn for all masks of a step at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import max_pool3d, pad

_DEPTH = 4

Decode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes points (B, S, N, 3) and labels (B, S, N) and returns logits (B, S, D, H, W)."""


def draw_corrections(decode: Decode, masks: torch.Tensor, *, clicks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw clicks one after the other, each where the prediction by those before it is wrong.

    The first click lies in the mask. No gradient is kept. Random numbers are those of torch, so that a seed of the step
    determines the clicks.

    Args:
        decode: the network with the clicks so far as its prompt.
        masks: (B, S, D, H, W), 0 or 1.
        clicks: how many.

    Returns:
        points (B, S, `clicks`, 3), voxel indices, and labels (B, S, `clicks`): 1 where the prediction missed a voxel, 0
        where it had one too many, -1 and the point (-1, -1, -1) where nothing was wrong.
    """
    points, labels = masks.new_zeros(*masks.shape[:2], 0, 3).long(), masks.new_zeros(*masks.shape[:2], 0).long()
    shown = torch.zeros_like(masks, dtype=torch.bool)
    with torch.no_grad():
        for number in range(clicks):
            if number:
                shown = decode(points, labels) > 0
            point, label = draw_click(shown.flatten(0, 1), masks.flatten(0, 1))
            points = torch.cat([points, point.view(*masks.shape[:2], 1, 3)], dim=2)
            labels = torch.cat([labels, label.view(*masks.shape[:2], 1)], dim=2)
    return points, labels


def draw_click(shown: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a wrong voxel of each prediction, the more likely the deeper it lies in a region of wrong voxels.

    The probability grows with the square of the depth in voxels, up to four; missing voxels and those that are too much
    are regions of their own.

    Args:
        shown: (N, D, H, W) bool, the predictions.
        masks: (N, D, H, W), 0 or 1.

    Returns:
        points (N, 3) and labels (N,), as of `draw_corrections`.

    >>> masks = torch.zeros(1, 3, 5, 5)
    >>> masks[0, 1, 2, 3] = 1
    >>> draw_click(masks > 1, masks)
    (tensor([[1, 2, 3]]), tensor([1]))
    """
    masks = masks > 0
    left = torch.stack([masks & ~shown, shown & ~masks], dim=1).float()
    depth = left
    for _ in range(_DEPTH - 1):
        left = -max_pool3d(-pad(left, [1] * 6), 3, stride=1)
        depth = depth + left
    weights = depth.square().sum(1).flatten(1)
    voxel = (weights / torch.empty_like(weights).exponential_()).argmax(1)  # each as likely as its weight says
    nothing = ~weights.any(1)
    points = torch.stack(torch.unravel_index(voxel, masks.shape[1:]), dim=1)
    labels = masks.flatten(1).gather(1, voxel[:, None])[:, 0].long()
    return points.masked_fill(nothing[:, None], -1), labels.masked_fill(nothing, -1)
