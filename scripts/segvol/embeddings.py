"""Embeddings of windows that are kept for further prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from scripts.common.errors import InputError
from scripts.models.segvol import SegVol


class Embeddings:
    """The embeddings of windows of one image, those used last."""

    def __init__(self, kept: int) -> None:
        if kept < 1:
            raise InputError(f"kept_embeddings is {kept}: give 1 or more.")
        self.kept, self.image, self.weights, self._known = kept, torch.empty(0), None, OrderedDict()

    def use(self, image: torch.Tensor, network: SegVol) -> None:
        """Forget all if image or weights are others than last time.

        The image is kept to compare with: it must not be changed in place.
        """
        weights = (id(network), image.device, sum(p._version for p in network.image_encoder.parameters()))
        if weights != self.weights or not torch.equal(image, self.image):
            self.image, self.weights = image, weights
            self._known.clear()

    def get(self, key: Any, window: Callable[[], torch.Tensor], network: SegVol) -> torch.Tensor:
        """Return the embedding of a window.

        Args:
            key: a name that is its own in the image.
            window: makes it, (1, 1, D, H, W), if it must be encoded.
            network: encodes it.
        """
        if key in self._known:
            self._known.move_to_end(key)
        else:
            self._known[key] = network.encode_image(window())
            if len(self._known) > self.kept:
                self._known.popitem(last=False)
        return self._known[key]
