"""The loss of a mask that a prompt asks for."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts.common.errors import InputError


def dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return 1 - 2 Σpt / (Σp + Σt + 1) of each mask; an empty target costs 1.

    Args:
        logits: of the voxels.
        target: 0 or 1; -1, where nothing is known, counts as 0.

    Shape:
        Both: (N, ...). Result: (N,).

    >>> round(dice_loss(torch.full((1, 3), 50.0), torch.tensor([[1, 1, -1]])).item(), 6)
    0.333333
    """
    p, t = logits.sigmoid().flatten(1), target.clamp(min=0).to(logits.dtype).flatten(1)
    return 1 - 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1) + 1)


class PromptLoss(nn.Module):
    """Dice and binary cross entropy of the masks that the prompts of a step ask for.

    The mean over the masks of organs, plus `pseudo_weight` times the mean over those of pseudo masks. Prompts are drawn
    from masks that are not empty: an empty target stands for none and adds nothing. Without any target the loss is 0,
    and so is every gradient.

    Args:
        pseudo: number of pseudo masks of a case, the last of its channels.
        pseudo_weight: weight of their mean.

    Shape:
        - Input: logits (B, T, D, H, W).
        - Target: 0, 1, or -1 where nothing is known, which counts as 0, (B, T, D, H, W).
        - Output: a number; computed in float32.

    Raises:
        InputError: the shapes differ, or `pseudo` is negative.

    Source:
        SegVol, the loss of its trainer. Departure: means over organs and prompts where it adds their losses, so that
        the loss does not depend on how many are drawn.
    """

    def __init__(self, *, pseudo: int = 0, pseudo_weight: float = 0.1) -> None:
        super().__init__()
        if pseudo < 0 or pseudo_weight < 0:
            raise InputError(f"pseudo is {pseudo} and pseudo_weight {pseudo_weight}: give 0 or more.")
        self.pseudo, self.pseudo_weight = pseudo, pseudo_weight

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss; see the class for shapes."""
        if logits.shape != target.shape or logits.ndim != 5:
            shapes = f"logits {tuple(logits.shape)} and target {tuple(target.shape)}"
            raise InputError(f"{shapes}: give both as (B, T, D, H, W).")
        organs = logits.shape[1] - self.pseudo
        return self._mean(logits[:, :organs], target[:, :organs]) + self.pseudo_weight * self._mean(
            logits[:, organs:], target[:, organs:]
        )

    @staticmethod
    def _mean(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits, target = logits.flatten(0, 1).float(), target.flatten(0, 1).to(logits.device).clamp(min=0).float()
        given = target.flatten(1).any(1)
        entropy = binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)
        losses = torch.where(given, dice_loss(logits, target) + entropy, 0.0)
        return losses.sum() / given.sum().clamp(min=1)
