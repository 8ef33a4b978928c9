"""Random transforms that make other tasks of a task."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch.nn.functional import max_pool2d


class RandInvertd(RandomizableTransform, MapTransform):
    """Turn dark into bright: intensities x of 0..1 become 1 - x.

    Args:
        keys: keys of the images, any shape.
        prob: probability.
    """

    def __init__(self, keys: KeysCollection, *, prob: float = 0.1) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the images of a case."""
        self.randomize(None)
        return {**data, **({key: 1 - data[key] for key in self.keys} if self._do_transform else {})}


class RandEdgeLabeld(RandomizableTransform, MapTransform):
    """Replace masks by their edges, about three pixels wide: a task of thin structures.

    Args:
        keys: keys of the masks, (C, H, W).
        prob: probability.
    """

    def __init__(self, keys: KeysCollection, *, prob: float = 0.1) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the masks of a case."""
        self.randomize(None)
        return {**data, **({key: edges(data[key]) for key in self.keys} if self._do_transform else {})}


def edges(masks: torch.Tensor) -> torch.Tensor:
    """Return where a mask begins or ends within one pixel: (C, H, W).

    >>> edges(torch.tensor([[[0.0, 0, 0, 1, 1, 1]]]))
    tensor([[[0., 0., 1., 1., 0., 0.]]])
    """
    return max_pool2d(masks, 3, stride=1, padding=1) + max_pool2d(-masks, 3, stride=1, padding=1)
