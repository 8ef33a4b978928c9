"""Losses for labels that are not known everywhere."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch.nn.functional import cross_entropy

from scripts.common.errors import InputError


class MaskedDiceCELoss(torch.nn.Module):
    """Dice and cross entropy as `monai.losses.DiceCELoss`, over those voxels alone whose label is known.

    Voxels of `ignore_index` add nothing to any sum, and their logits get a gradient of exactly 0. Where no voxel
    is ignored the value is MONAI's. An image without any known voxel is left out of the mean over the batch; if no
    image has one, the loss is 0 and so is every gradient.

    Args:
        include_background: whether Dice counts class 0; cross entropy always does, as MONAI's.
        to_onehot_y: has to be true; accepted so that the settings of MONAI's loss need no change.
        sigmoid: activate by sigmoid for Dice; cross entropy takes softmax either way, as MONAI's.
        softmax: activate by softmax for Dice.
        smooth_nr: added to the numerator of Dice.
        smooth_dr: added to its denominator.
        batch: sum over the images of the batch before dividing.
        weight: (C,) weights of the classes, of both losses as MONAI's; None: all count the same.
        lambda_dice: weight of Dice.
        lambda_ce: weight of cross entropy.
        ignore_index: the label of voxels to leave out.

    Shape:
        Logits (B, C, …), C above 1, and class ids (B, 1, …) of any dtype give a scalar.

    Raises:
        InputError: not exactly one activation, no one-hot conversion, `smooth_dr` 0, or a negative weight.

    Source:
        MONAI 1.6.1: `DiceLoss(ignore_index=…)`, and `DiceCELoss`, which takes no `ignore_index`. Departure: MONAI's
        Dice of an image without known voxels counts as 1 - smooth_nr / smooth_dr, which without smoothing is 1.

    >>> logits = torch.zeros(1, 2, 4, 4, 4, requires_grad=True)
    >>> label = torch.full((1, 1, 4, 4, 4), 255)
    >>> label[..., 0] = 1
    >>> MaskedDiceCELoss(softmax=True)(logits, label).backward()
    >>> logits.grad[..., 1:].abs().max()
    tensor(0.)
    """

    def __init__(
        self,
        *,
        include_background: bool = True,
        to_onehot_y: bool = True,
        sigmoid: bool = False,
        softmax: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: torch.Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if not to_onehot_y or sigmoid == softmax:
            raise InputError("set to_onehot_y and one of sigmoid and softmax to true: labels are class ids.")
        if smooth_dr <= 0 or min(smooth_nr, lambda_dice, lambda_ce) < 0:
            raise InputError("smooth_dr has to be above 0; smooth_nr, lambda_dice and lambda_ce 0 or more.")
        self.dice = DiceLoss(
            include_background=include_background,
            to_onehot_y=True,
            sigmoid=sigmoid,
            softmax=softmax,
            reduction="none",
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            batch=batch,
            weight=weight if weight is None or include_background else weight[1:],
            ignore_index=ignore_index,
        )
        self.register_buffer("weight", weight, persistent=False)
        self.lambda_dice, self.lambda_ce, self.ignore_index = lambda_dice, lambda_ce, ignore_index

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of both losses.

        Raises:
            InputError: the shapes do not fit, or `ignore_index` is one of the classes.
        """
        classes = input.shape[1]
        if classes < 2 or target.shape != (input.shape[0], 1, *input.shape[2:]):
            raise InputError(
                f"logits have shape {tuple(input.shape)} and labels {tuple(target.shape)}: "
                "give (B, C, …) with C above 1 and class ids (B, 1, …)."
            )
        if 0 <= self.ignore_index < classes:
            raise InputError(f"ignore_index {self.ignore_index} is one of the {classes} classes: give another label.")
        # counted on the device: asking whether any voxel is known would wait for it at every step
        known = (target != self.ignore_index).flatten(1).sum(1)
        dice = self._mean_dice(input, target, known)
        return self.lambda_dice * dice + self.lambda_ce * self._mean_ce(input, target[:, 0].long(), known.sum())

    def _mean_ce(self, input: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Average cross entropy over the known voxels, `known` in number, each with the weight of its class."""
        if self.weight is None:
            ce = cross_entropy(input, target, ignore_index=self.ignore_index, reduction="sum")
            return ce / known.clamp(min=1)
        weight = self.weight.to(input.device)
        options = {"weight": weight.to(input), "ignore_index": self.ignore_index, "reduction": "sum"}
        ce = cross_entropy(input, target, **options)
        is_known = target != self.ignore_index
        total = (weight[target * is_known] * is_known).sum()
        return ce / total.clamp(min=torch.finfo(total.dtype).tiny)

    def _mean_dice(self, input: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Average Dice over the classes, then over the images with known voxels, of which each has `known`."""
        per_class = self.dice(input, target)
        if self.dice.batch:
            return per_class.mean() * known.any()
        has_known = (known > 0).to(per_class)
        return (per_class.flatten(1).mean(1) * has_known).sum() / has_known.sum().clamp(min=1)
