"""Changes of an image's intensities that may undo a shift: gamma and unsharp masking.

Each depends on the image and on two numbers of each channel alone, so a window is changed as the whole image is, but
for sharpening within four voxels of its border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.utils import convert_to_dst_type, convert_to_tensor

Kind = Literal["gamma", "unsharp"]


@dataclass(frozen=True)
class Intensities:
    """Smallest and largest intensity of a channel of the whole image."""

    low: float
    high: float


@dataclass(frozen=True)
class Candidate:
    """A change of one channel.

    Attributes:
        kind: the function of this module.
        amount: its exponent or factor.
    """

    kind: Kind
    amount: float

    def __str__(self) -> str:
        return f"{self.kind} {self.amount:g}"


def intensities(image: torch.Tensor) -> list[Intensities]:
    """Return the intensities of each channel.

    Shape:
        image: (1, C, ...).
    """
    channels = convert_to_tensor(image, track_meta=False)[0].flatten(1)
    return [Intensities(*map(float, channel.aminmax())) for channel in channels]


def gamma(x: torch.Tensor, exponent: float, seen: Intensities) -> None:
    """Set x to `low + (high - low) * ((x - low) / (high - low)) ** exponent`."""
    span = seen.high - seen.low
    x.sub_(seen.low).div_(span).clamp_(0, 1).pow_(exponent).mul_(span).add_(seen.low)


def unsharp(x: torch.Tensor, factor: float, seen: Intensities) -> None:
    """Set x to `clip(x + factor * (x - smooth), low, high)`, where `smooth` is x after a Gaussian of 1 voxel.

    Shape:
        x: (1, 1, ...) with up to three spatial axes.
    """
    kernels = [gaussian_1d(torch.tensor(1.0), approx="sampled", normalize=True)] * (x.ndim - 2)
    with torch.autocast(x.device.type, enabled=False):  # half precision would round the image
        smooth = separable_filtering(x, kernels, mode="replicate")
    x.mul_(1 + factor).sub_(smooth, alpha=factor).clamp_(seen.low, seen.high)


FUNCTIONS = {"gamma": gamma, "unsharp": unsharp}


def changed(image: torch.Tensor, chosen: Mapping[int, Candidate], seen: Sequence[Intensities]) -> torch.Tensor:
    """Return a copy of an image, or of a window of it, with some channels changed.

    Voxels of exactly 0 stay 0: they are air after normalization, the outside of a skull-stripped brain, or an absent
    channel.

    Args:
        image: it or a window of it.
        chosen: number of a channel to its change.
        seen: of the channels of the whole image.

    Shape:
        image: (1, C, ...) keeps its shape.
    """
    found = convert_to_tensor(image, track_meta=False).clone()
    for channel, candidate in chosen.items():
        x = found[:, channel : channel + 1]
        is_zero = x == 0
        FUNCTIONS[candidate.kind](x, candidate.amount, seen[channel])
        x.masked_fill_(is_zero, 0)
    return convert_to_dst_type(found, image)[0]
