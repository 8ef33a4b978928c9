"""Changes of an image's intensities that may undo a shift.

Each depends on the image and on two numbers of each channel alone, so a window is changed as the whole image is, but
for filters within a few voxels of its border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from monai.utils import convert_to_dst_type, convert_to_tensor


@dataclass(frozen=True)
class Intensities:
    """Smallest and largest intensity of a channel of the whole image."""

    low: float
    high: float


class Change(Protocol):
    """A change of one channel, which `str` names."""

    def apply(self, x: torch.Tensor, seen: Intensities) -> None:
        """Change a channel, or a window of it, in place.

        Args:
            x: of the channel.
            seen: of the channel of the whole image.

        Shape:
            x: (1, 1, ...) with up to three spatial axes.
        """


@dataclass(frozen=True)
class Gamma:
    """Set x to `low + (high - low) * ((x - low) / (high - low)) ** exponent`."""

    exponent: float

    def __str__(self) -> str:
        return f"gamma {self.exponent:g}"

    def apply(self, x: torch.Tensor, seen: Intensities) -> None:
        """Change x in place, see `Change`."""
        span = seen.high - seen.low
        x.sub_(seen.low).div_(span).clamp_(0, 1).pow_(self.exponent).mul_(span).add_(seen.low)


def intensities(image: torch.Tensor) -> list[Intensities]:
    """Return the intensities of each channel.

    Shape:
        image: (1, C, ...).
    """
    channels = convert_to_tensor(image, track_meta=False)[0].flatten(1)
    return [Intensities(*map(float, channel.aminmax())) for channel in channels]


def changed(image: torch.Tensor, chosen: Mapping[int, Sequence[Change]], seen: Sequence[Intensities]) -> torch.Tensor:
    """Return a copy of an image, or of a window of it, with some channels changed.

    Voxels of exactly 0 stay 0: they are air after normalization, the outside of a skull-stripped brain, or an absent
    channel.

    Args:
        image: it or a window of it.
        chosen: number of a channel to its changes, one after the other.
        seen: of the channels of the whole image.

    Shape:
        image: (1, C, ...) keeps its shape.
    """
    found = convert_to_tensor(image, track_meta=False).clone()
    for channel, changes in chosen.items():
        x = found[:, channel : channel + 1]
        is_zero = x == 0
        for change in changes:
            change.apply(x, seen[channel])
        x.masked_fill_(is_zero, 0)
    return convert_to_dst_type(found, image)[0]
