"""Predict the frames of an image or a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor

from scripts.common.errors import InputError


class FrameInferer(Inferer):
    """Predict the probability of bone in each frame.

    Args:
        batch_size: frames that are predicted together.
        threshold: probability above which a pixel is bone. It is the output's channel 0, so that the largest channel
            is the class.

    Attributes:
        frames: number of frames that were predicted.
        seconds: that this took.

    Shape:
        inputs: (1, 1, H, W, Z) become (1, 2, H, W, Z).

    Raises:
        InputError: the batch size is below 1; when called: the image has another shape.
    """

    def __init__(self, *, batch_size: int = 8, threshold: float = 0.5) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give 1 or more.")
        self.batch_size, self.threshold = batch_size, threshold
        self.frames, self.seconds = 0, 0.0

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *_: object, **__: object
    ) -> torch.Tensor:
        """Predict the frames of one image."""
        if inputs.ndim != 5 or inputs.shape[:2] != (1, 1):
            raise InputError(f"the image has shape {tuple(inputs.shape)}: give one image (1, 1, H, W, Z).")
        frames = convert_to_tensor(inputs, track_meta=False)[0].movedim(-1, 0)
        started = time.perf_counter()
        bone = torch.cat([network(part).float().sigmoid() for part in frames.split(self.batch_size)])
        if bone.is_cuda:
            torch.cuda.synchronize(bone.device)
        self.seconds += time.perf_counter() - started
        self.frames += len(frames)
        return torch.stack([torch.full_like(bone, self.threshold), bone]).squeeze(2).movedim(1, -1)[None]
