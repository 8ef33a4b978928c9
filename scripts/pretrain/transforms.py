"""Transforms of images whose channels are contrasts, some of which may be absent: their channels are 0."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from scripts.common.errors import InputError
from scripts.data.plausibility import filled, intensity_kind, tissue_of
from scripts.data.transforms import WarnImplausibled
from scripts.ukbb.swaps import channel_signs

PERCENTILES = (0.5, 99.5)
"""Of a channel inside the body, which become 0 and 1; those of nnU-Net."""
_STEP = 2  # voxels between those that the percentiles are taken of
logger = logging.getLogger(__name__)


class WarnContrastsd(WarnImplausibled):
    """Log a warning for each sign that an image of the torso, or the order of its channels, is not what it says.

    See `scripts.data.plausibility.implausible`; if no contrast is absent, also `scripts.ukbb.swaps.channel_signs`.

    Args:
        keys: keys of the images, (C, X, Y, Z) MetaTensors in RAS.
        allow_missing_keys: skip keys that the case lacks.
    """

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Look at the images of a case."""
        for key in self.key_iterator(dict(data)):
            image = data[key]
            if present(image).all():
                name = image.meta.get("case") or image.meta.get("filename_or_obj", key)
                for sign in channel_signs(image.cpu().numpy(), image.pixdim[:2].tolist()):
                    logger.warning("%s: %s", name, sign)
        return super().__call__(data)


class NormalizeContrastsd(MapTransform):
    """Scale each channel by percentiles of its own body: `PERCENTILES` become 0 and 1, what is beyond is clipped.

    The body of a channel is its tissue without small parts, with the holes in the planes of each axis filled; it is the
    same whether other channels are there or not. An absent channel stays exactly 0. Nothing is random.

    Args:
        keys: keys of the images.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (C, X, Y, Z), unchanged.

    Source:
        Percentiles as in nnU-Net. The published code applies a window of -175 to 250 to MRI, from its CT config.

    >>> image = torch.zeros(2, 8, 8, 8)
    >>> image[0, 2:6, 2:6, 2:6] = torch.arange(64.0).reshape(4, 4, 4) + 100
    >>> scaled = NormalizeContrastsd("image")({"image": image})["image"]
    >>> scaled[0].amin().item(), scaled[0].amax().item(), scaled[1].abs().amax().item()
    (0.0, 1.0, 0.0)
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the images of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = d[key].clone()
            for channel in np.flatnonzero(present(d[key])):
                low, high = body_range(d[key][channel].cpu().numpy())
                d[key][channel] = ((d[key][channel] - low) / (high - low)).clamp(0, 1)
        return d


class RandDropChannelsd(RandomizableTransform, MapTransform):
    """Randomly set channels to 0, so that one network takes images of any contrasts; never all of an image.

    Each channel that is not absent is dropped with probability `prob`. If all would be, one of them stays, each with
    the same probability.

    Args:
        keys: keys of the images, which get the same draws.
        prob: probability that a channel is dropped, 0 to below 1.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (C, ...), unchanged.

    >>> drop = RandDropChannelsd("image", prob=0.9)
    >>> drop({"image": torch.ones(1, 2, 2, 2)})["image"].amin()
    tensor(1.)
    """

    def __init__(self, keys: KeysCollection, *, prob: float = 0.25, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        if not 0 <= prob < 1:
            raise InputError(f"channel_drop_prob is {prob}: give a probability from 0 to below 1.")
        self.channel_prob = prob

    def randomize(self, data: np.ndarray) -> np.ndarray:
        """Draw which channels stay.

        Args:
            data: (C,) bool, which channels are not absent.
        """
        super().randomize(None)
        draws, last = self.R.random(len(data)), self.R.random()
        kept = data & (draws >= self.channel_prob)
        if data.any() and not kept.any():
            candidates = np.flatnonzero(data)
            kept[candidates[int(last * len(candidates))]] = True
        return kept

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Drop channels of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            there = present(d[key])
            if (dropped := there & ~self.randomize(there)).any():
                d[key] = d[key].clone()
                d[key][np.flatnonzero(dropped)] = 0
        return d


class MaskIgnoredd(MapTransform):
    """Set voxels whose label is not known to background, in label and prediction alike, so that no score counts them.

    Args:
        keys: keys of the label maps, the label among them; what a case lacks is skipped.
        ignored_label: value of these voxels.
        label_key: the one of `keys` that holds the label.

    Shape:
        All keys: (1, X, Y, Z), unchanged.
    """

    def __init__(self, keys: KeysCollection, *, ignored_label: int = 255, label_key: str = "label") -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.ignored_label, self.label_key = ignored_label, label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Mask the label maps of a case; a label that is still a path is left to whoever reads it."""
        d = dict(data)
        label = d.get(self.label_key)
        if not isinstance(label, torch.Tensor):
            return d
        ignored = torch.as_tensor(label) == self.ignored_label
        if ignored.any():
            for key in self.key_iterator(d):
                d[key] = d[key].masked_fill(ignored.to(d[key].device), 0)
        return d


def present(image: torch.Tensor) -> np.ndarray:
    """Return which channels of an image (C, ...) are not absent, (C,) bool."""
    return (torch.as_tensor(image) != 0).flatten(1).any(dim=1).cpu().numpy()


def body_range(channel: np.ndarray) -> tuple[float, float]:
    """Return the `PERCENTILES` of a channel inside its body, or its ends where those are equal.

    Args:
        channel: (X, Y, Z), not constant.
    """
    coarse = channel[::_STEP, ::_STEP, ::_STEP]
    body = filled(tissue_of(coarse, is_ct=intensity_kind(channel) == "HU"))
    low, high = np.percentile(coarse[body], PERCENTILES) if body.any() else (0.0, 0.0)
    if low == high:
        low, high = channel.min(), channel.max()
    return float(low), float(high)
