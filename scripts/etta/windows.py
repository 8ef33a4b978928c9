"""Which windows of an image to adapt to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from scripts.inference.window_layout import Window, WindowLayout

# Of the inferer's windows. The default of 2 steps predicts them three times besides the prediction itself; a fifth
# keeps the time of a case below twice that of the plain network.
REFERENCE_SHARE = 0.2
MIN_REFERENCE_WINDOWS = 4


def measured_windows(layout: WindowLayout, image: torch.Tensor, *, every: bool) -> list[Window]:
    """Return all windows of the inferer, or those of `reference_windows`.

    Args:
        layout: how the inferer divides the image.
        image: padded, (1, C, ...).
        every: whether to take all.
    """
    return layout.windows(image.shape[2:]) if every else reference_windows(layout, image)


def crops(image: torch.Tensor, windows: Sequence[Window], device: torch.device) -> list[Callable[[], torch.Tensor]]:
    """Return functions that copy the windows of a padded image, (1, C, ...), to a device."""
    return [partial(_crop, image, window, device) for window in windows]


def _crop(image: torch.Tensor, window: Window, device: torch.device) -> torch.Tensor:
    """Copy a window, as a tensor made in inference mode cannot be part of a graph."""
    return image[(..., *window)].to(device, copy=True)


def reference_windows(layout: WindowLayout, image: torch.Tensor) -> list[Window]:
    """Choose the windows that represent the image before and after adaptation.

    They lie side by side. If these are more than a fifth of the inferer's windows, those with the lowest standard
    deviation of intensity, such as air and fat, are left out.

    Args:
        layout: how the inferer divides the image.
        image: padded, (1, C, ...).

    Returns:
        At least one window.
    """
    size = image.shape[2:]
    beside = layout.windows(size, overlapping=False)
    n = max(MIN_REFERENCE_WINDOWS, int(REFERENCE_SHARE * len(layout.windows(size))))
    if len(beside) <= n:
        return beside
    deviation = np.array([float(image[(..., *window)].float().std()) for window in beside])
    kept = np.sort(np.argsort(-deviation, kind="stable")[:n])
    return [beside[index] for index in kept]


def choose(
    entropy: Sequence[float], foreground: Sequence[float], *, count: int, generator: np.random.Generator
) -> list[int]:
    """Draw the windows of one step: one from each stratum of uncertainty, windows with foreground first.

    Args:
        entropy: mean entropy of each window.
        foreground: predicted share of foreground of each window, 0 to 1.
        count: number of windows wanted.
        generator: source of randomness.

    Returns:
        At most `count` distinct indices; the first is one of the most uncertain windows.
    """
    order = sorted(range(len(entropy)), key=lambda i: (foreground[i] <= 0, -entropy[i], i))
    n_foreground = sum(share > 0 for share in foreground)
    pool = order[: max(count, n_foreground)]
    strata = np.array_split(np.array(pool), min(count, len(pool)))
    return [int(generator.choice(stratum)) for stratum in strata]
