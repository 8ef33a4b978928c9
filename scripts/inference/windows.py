"""Sliding-window inference: windows that are the same are predicted once, and memory is checked before it starts."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SlidingWindowInfererAdapt
from monai.utils import convert_to_tensor

from scripts.common.errors import InputError
from scripts.inference.window_layout import WindowLayout
from scripts.io import memory

NETWORK_BYTES = 2000
"""Memory that Swin UNETR takes per voxel of a window, its output included: 1670 to 1870 measured on the CPU at feature
size 48 in float32, with windows of 96 and 64 voxels."""
logger = logging.getLogger(__name__)


class SlidingWindowInferer(SlidingWindowInfererAdapt):
    """MONAI's sliding-window inferer that predicts equal windows of air once and knows its memory beforehand.

    A window in which each channel has a single value, such as air after clipping or the background of a skull-stripped
    brain, is predicted for the first such window; the others get the same logits. As the network sees nothing but the
    window, the sum is that of MONAI's inferer but for rounding, whatever the network predicts in air.

    Where the sum of the windows does not fit on the GPU, it is kept in the memory of the computer. MONAI's
    `SlidingWindowInfererAdapt` does so after an out-of-memory error; here it is decided before the first window too.

    Args:
        roi_size: voxels of a window along each axis.
        out_channels: channels of the network's output.
        device: of the sum of the windows; "auto" or None decides for each image.
        reuse_uniform: whether to predict equal windows without contrast once. Left out where the network gets more
            than the window.
        network_bytes: memory that the network takes per voxel of a window.
        options: as `monai.inferers.SlidingWindowInferer`. With `progress`, windows, memory and time are logged.

    >>> inferer = SlidingWindowInferer(roi_size=8, out_channels=1, overlap=0.5)
    >>> windows = []
    >>> _ = inferer(torch.zeros(1, 1, 16, 16, 16), lambda window: windows.append(window) or window)
    >>> len(windows)
    1
    """

    def __init__(
        self,
        roi_size: Any,
        *,
        out_channels: int,
        device: torch.device | str | None = "auto",
        reuse_uniform: bool = True,
        network_bytes: int = NETWORK_BYTES,
        **options: Any,
    ) -> None:
        super().__init__(roi_size, device=None if device == "auto" else device, **options)
        self.out_channels = out_channels
        self.reuse_uniform = reuse_uniform
        self.network_bytes = network_bytes

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Predict images by their windows.

        Args:
            inputs: images.
            network: predicts a batch of windows; in the mode that it predicts in.
            args: passed to the network.
            kwargs: passed to the network.

        Shape:
            inputs: (B, C, ...) become (B, out_channels, ...).

        Raises:
            InputError: the network returns several outputs, which `reuse_uniform` does not support.
        """
        reuse = self.reuse_uniform and not (self.with_coord or args or kwargs)
        layout = WindowLayout.of(self, inputs.shape[2:])
        contents = _contents(layout, inputs)
        n = _count_predicted(contents) if reuse else len(contents)
        self._provide_memory(inputs, layout, len(contents), n)
        predictor = _Predictor(network, n=n, reuse=reuse, level=self._level())
        return super().__call__(inputs, predictor, *args, **kwargs)

    def _level(self) -> int:
        return logging.INFO if self.progress else logging.DEBUG

    def _provide_memory(self, inputs: torch.Tensor, layout: WindowLayout, windows: int, n: int) -> None:
        """Log the memory that the windows need, and keep their sum off the GPU if it does not fit there."""
        sizes = [max(pair) for pair in zip(inputs.shape[2:], layout.roi_size, strict=True)]
        sums = sum_bytes(sizes, channels=self.out_channels, batch=inputs.shape[0], itemsize=inputs.itemsize)
        network = min(n, self.sw_batch_size) * math.prod(layout.roi_size) * self.network_bytes
        own, free = inputs.device, free_bytes(inputs.device)
        device = torch.device(self.device or choose_device(own, sums=sums, network=network, free=free))
        moved = self.device is None and device != own
        if moved:  # what MONAI's class remembers after an out-of-memory error
            self.cpu_thresh = min(self.cpu_thresh or math.inf, math.prod(inputs.shape[2:]) - 1)
        needed = network + (sums if device == own else 0)
        message = "%d windows, %d to predict: up to %.2f GB on %s, %.2f GB are free; their sum takes %.2f GB on %s"
        if needed > free:
            message += "; lower sw_batch_size or patch_size if memory runs out"
        level = logging.WARNING if moved or needed > free else self._level()
        logger.log(level, message, windows, n, needed / 1e9, own, free / 1e9, sums / 1e9, device)


def sum_bytes(sizes: list[int], *, channels: int, batch: int, itemsize: int) -> int:
    """Return the memory of the sum of the windows: one volume per channel, and one of weights for all.

    Args:
        sizes: voxels of the padded image along each axis.
        channels: of the network's output.
        batch: number of images.
        itemsize: bytes of a value.

    >>> sum_bytes([10, 10, 10], channels=14, batch=1, itemsize=4)
    60000
    """
    return math.prod(sizes) * (batch * channels + 1) * itemsize


def choose_device(device: torch.device, *, sums: int, network: int, free: int) -> torch.device:
    """Choose the device that holds the sum of the windows.

    Args:
        device: of the network.
        sums: bytes of the sum.
        network: bytes that the network takes for one batch of windows.
        free: free bytes of the device.

    Returns:
        The device of the network if both fit there, else the CPU.
    """
    return device if sums + network <= free else torch.device("cpu")


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device, with what PyTorch holds in reserve there."""
    if device.type != "cuda":
        return memory.free_bytes()
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def uniform_values(windows: torch.Tensor) -> list[tuple[float, ...] | None]:
    """Return for each window the value of each channel, or None where a channel has more than one.

    Shape:
        windows: (B, C, ...).

    >>> uniform_values(torch.tensor([[[0.0, 0.0]], [[0.0, 1.0]]]))
    [(0.0,), None]
    """
    low, high = (ends.tolist() for ends in windows.flatten(2).aminmax(dim=-1))
    return [tuple(least) if least == most else None for least, most in zip(low, high, strict=True)]


def _contents(layout: WindowLayout, inputs: torch.Tensor) -> list[tuple[float, ...] | None]:
    """Return the `uniform_values` of all windows of all images."""
    padded = layout.padded(convert_to_tensor(inputs, track_meta=False))
    windows = layout.windows(padded.shape[2:])
    return [values for window in windows for values in uniform_values(padded[(..., *window)])]


def _count_predicted(contents: list[tuple[float, ...] | None]) -> int:
    return contents.count(None) + len(set(contents) - {None})


class _Predictor:
    """The network, which predicts equal windows without contrast once and logs the expected time.

    Args:
        network: predicts a batch of windows.
        n: number of windows that it will predict.
        reuse: whether equal windows are predicted once.
        level: of the log.
    """

    def __init__(self, network: Callable[..., Any], *, n: int, reuse: bool, level: int) -> None:
        self.network, self.n, self.reuse, self.level = network, n, reuse, level
        self.known: dict[tuple[float, ...], torch.Tensor] = {}
        self.is_first = True

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Predict a batch of windows, (B, C, ...)."""
        if not self.reuse:
            return self._timed(windows, *args, **kwargs)
        contents = uniform_values(windows)
        seen: set[tuple[float, ...] | None] = set(self.known)
        new = [i for i, values in enumerate(contents) if values is None or not (values in seen or seen.add(values))]
        if len(new) == len(windows):
            return self._predict_new(windows, contents)
        logits = self._predict_new(windows[new], [contents[i] for i in new]) if new else ()
        fresh = dict(zip(new, logits, strict=True))
        return torch.stack([fresh[i] if i in fresh else self.known[values] for i, values in enumerate(contents)])

    def _predict_new(self, windows: torch.Tensor, contents: list[tuple[float, ...] | None]) -> torch.Tensor:
        """Predict windows and keep the logits of those without contrast."""
        logits = self._timed(windows)
        if not isinstance(logits, torch.Tensor):
            raise InputError(f"the network returns a {type(logits).__name__}: set inferer#reuse_uniform to False.")
        for values, one in zip(contents, logits, strict=True):
            if values is not None:
                self.known[values] = one.clone()  # MONAI multiplies the logits in place
        return logits

    def _timed(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Predict, and log after the first batch how long all windows will take."""
        if not self.is_first:
            return self.network(windows, *args, **kwargs)
        self.is_first, start = False, time.perf_counter()
        logits = self.network(windows, *args, **kwargs)
        if windows.is_cuda:
            torch.cuda.synchronize(windows.device)
        seconds = (time.perf_counter() - start) * self.n / len(windows)
        logger.log(self.level, "expected time of %d windows: %.0f s", self.n, seconds)
        return logits
