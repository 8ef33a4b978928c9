"""The loss of bone surfaces."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts.common.errors import InputError


class BoneSurfaceLoss(nn.Module):
    """Dice and binary cross entropy of the band, less the share of the skeleton that is found.

    - Dice: 1 - 2 Σpt / (Σp + Σt), where sums are over all pixels of the batch; 0 for a batch without bone.
    - Cross entropy: the mean over all pixels.
    - Skeleton recall: Σps / Σs of each image, averaged over the images of the batch, of which those without bone count
      as 0.

    Args:
        lambda_dice: weight of Dice.
        lambda_bce: weight of cross entropy.
        lambda_skeleton: weight of the skeleton recall, which is subtracted.

    Shape:
        - Input: logits (B, 1, H, W).
        - Target: band and skeleton (B, 2, H, W), as `BoneBandd` makes them.
        - Output: a number; computed in float32.

    Raises:
        InputError: a weight is below 0, or the shapes do not fit.

    Source:
        The loss of UltraBones100k. Departure: its skeleton recall is NaN for an image without bone.

    >>> target = torch.ones(1, 2, 4, 4)
    >>> round(BoneSurfaceLoss()(torch.full((1, 1, 4, 4), 20.0), target).item(), 4)
    -0.1
    """

    def __init__(self, *, lambda_dice: float = 1.0, lambda_bce: float = 1.0, lambda_skeleton: float = 0.1) -> None:
        super().__init__()
        if not min(lambda_dice, lambda_bce, lambda_skeleton) >= 0:
            weights = f"lambda_dice {lambda_dice}, lambda_bce {lambda_bce}, lambda_skeleton {lambda_skeleton}"
            raise InputError(f"{weights}: give weights of 0 or more.")
        self.lambda_dice, self.lambda_bce, self.lambda_skeleton = lambda_dice, lambda_bce, lambda_skeleton
        self.dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=0.0, smooth_dr=1e-7)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss; see the class for shapes."""
        shape = tuple(logits.shape)
        if logits.ndim != 4 or shape[1] != 1 or tuple(target.shape) != (shape[0], 2, *shape[2:]):
            raise InputError(f"logits {shape} and target {tuple(target.shape)}: give (B, 1, H, W) and (B, 2, H, W).")
        logits, target = logits.float(), target.to(logits.device, torch.float32)
        band, skeleton = target[:, :1], target[:, 1:]
        dice = self.dice(logits, band) * band.any()
        return (
            self.lambda_dice * dice
            + self.lambda_bce * binary_cross_entropy_with_logits(logits, band)
            - self.lambda_skeleton * skeleton_recall(logits.sigmoid(), skeleton)
        )


def skeleton_recall(probabilities: torch.Tensor, skeleton: torch.Tensor) -> torch.Tensor:
    """Return the mean share of the skeletons that is found, (B, 1, H, W) each; 0 for an image without skeleton.

    >>> skeleton_recall(torch.ones(2, 1, 2, 2), torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)).item()
    0.5
    """
    found, whole = ((x * skeleton).flatten(1).sum(1) for x in (probabilities, torch.ones_like(skeleton)))
    return (found / whole.clamp(min=1e-7)).mean()
