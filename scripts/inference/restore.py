"""From logits on the network's grid to a label map on the grid of the input."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd

ToLabelMap = Callable[[Callable[[int], torch.Tensor], int], torch.Tensor]
"""Makes class ids from a function that returns the logits of one channel, and the number of channels."""


def winning_classes(logits_of: Callable[[int], torch.Tensor], n: int) -> torch.Tensor:
    """Find the class with the largest logit in each voxel, keeping a running maximum.

    Args:
        logits_of: returns the logits of one class; called once per class, in order.
        n: number of classes, up to 256.

    Shape:
        Logits of any shape become class ids of that shape, uint8.
    """
    best = logits_of(0)
    classes = torch.zeros(best.shape, dtype=torch.uint8)
    for index in range(1, n):
        values = logits_of(index)
        classes[values > best] = index
        torch.maximum(best, values, out=best)
    return classes


class RestoreLabelMapd(Invertd):
    """Resample logits to the grid of the input and make the label map there.

    Interpolating logits keeps borders smooth; a nearest-neighbour label map would show the network's coarse grid.
    Channels are resampled one at a time, so that three volumes of the input's size are held instead of one per
    channel. Voxels outside the foreground crop become background.

    Args:
        keys: the one key of the logits.
        orig_keys: the one key of the image whose transforms are inverted.
        transform: the deterministic preprocessing of that image.
        to_label_map: how logits become class ids, by default `winning_classes`; another one for channels that
            overlap.

    Shape:
        Logits (C, x, y, z) on the network's grid, C up to 256, become class ids (1, X, Y, Z), uint8, on the grid of
        the file.

    >>> from monai.transforms import Spacingd
    >>> preprocessing = Spacingd("image", pixdim=(2, 2, 2))
    >>> case = preprocessing({"image": MetaTensor(torch.rand(1, 8, 8, 6))})
    >>> case["pred"] = MetaTensor(torch.rand(3, *case["image"].shape[1:]))
    >>> RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)(case)["pred"].shape
    torch.Size([1, 8, 8, 6])
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        orig_keys: KeysCollection,
        transform: Any,
        to_label_map: ToLabelMap = winning_classes,
    ) -> None:
        super().__init__(keys, transform=transform, orig_keys=orig_keys, nearest_interp=False, device="cpu")
        self.to_label_map = to_label_map

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore the label map of a case."""
        key, orig_key = self.keys[0], self.orig_keys[0]
        logits, meta = data[key], {}

        def restored(channel: int) -> torch.Tensor:
            volume = super(RestoreLabelMapd, self).__call__({orig_key: data[orig_key], key: logits[channel][None]})[key]
            meta.update(volume.meta)
            return volume.as_tensor()

        classes = self.to_label_map(restored, len(logits))
        return {**data, key: MetaTensor(classes, meta=meta)}
