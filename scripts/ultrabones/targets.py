"""What the network learns of a label of bone: a band along the surface, and the surface itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, distance_transform_edt

from scripts.common.errors import InputError


class BoneBandd(MapTransform):
    """Replace a label of bone by the band of pixels near it and, as a second channel, those nearest to it.

    Distances are in pixels of the grid that the label is on, from centre to centre. A label without bone gives two
    channels without bone.

    Args:
        keys: keys of the labels.
        band_px: largest distance of the band; 3 makes it 7 pixels wide.
        skeleton_px: largest distance of the second channel, the skeleton; None: there is none.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Labels (1, H, W) or (1, H, W, Z), above 0 where there is bone, become (2, H, W) or (2, H, W, Z), float32 of 0
        and 1; of several frames, each by itself.

    Raises:
        InputError: a distance is below 0, or the label has another shape.

    Source:
        The target of UltraBones100k. Departure: there, a label without bone becomes a few pixels in a corner.

    >>> label = torch.zeros(1, 1, 9)
    >>> label[..., 4] = 1
    >>> BoneBandd("label")({"label": label})["label"].sum((1, 2)).tolist()
    [7.0, 3.0]
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        band_px: float = 3.0,
        skeleton_px: float | None = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.limits_px = (band_px,) if skeleton_px is None else (band_px, skeleton_px)
        if not all(limit >= 0 for limit in self.limits_px):
            raise InputError(f"band_px is {band_px} and skeleton_px {skeleton_px}: give distances of 0 pixels or more.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the labels of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.band(d[key])
        return d

    def band(self, label: torch.Tensor) -> torch.Tensor:
        """Return band and skeleton of one label."""
        if label.ndim not in (3, 4) or len(label) != 1:
            raise InputError(f"the label has shape {tuple(label.shape)}: give (1, H, W) or (1, H, W, Z).")
        bone = torch.as_tensor(label) > 0
        if label.ndim == 4:
            near = torch.stack([self._near(frame) for frame in bone.unbind(-1)], dim=-1)
        else:
            near = self._near(bone)
        return MetaTensor(near, meta=label.meta) if isinstance(label, MetaTensor) else near

    def _near(self, bone: torch.Tensor) -> torch.Tensor:
        """Return the channels of one frame, (1, H, W)."""
        if not bone.any():
            return torch.zeros(len(self.limits_px), *bone.shape[1:])
        distance_px = distance_transform_edt((~bone).float())[0]
        return torch.stack([(distance_px <= limit).float() for limit in self.limits_px])


class BonePixelsd(MapTransform):
    """Tell bone from background in a published label, whose lower values are not bone.

    Args:
        keys: keys of the labels.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Labels of any shape become uint8 of the same: 1 where the value is 255; of a label of 0 and 1 alone, where it
        is 1.

    >>> BonePixelsd("label")({"label": torch.tensor([0, 254, 255])})["label"].tolist()
    [0, 0, 1]
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the labels of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = (d[key] == (255 if (d[key] > 1).any() else 1)).to(torch.uint8)
        return d
