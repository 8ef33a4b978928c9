"""Statistics of a prediction on the reference windows, and the guard that accepts or refuses an adaptation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from scripts.common.errors import InputError
from scripts.etta.objectives import class_counts, foreground_weight, voxel_entropy
from scripts.etta.settings import ETTASettings

Crop = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class PredictionStats:
    """Statistics of a prediction on the reference windows; each list has one item per window.

    Attributes:
        entropy: mean voxel entropy.
        weighted: sum of entropies weighted by the probability of foreground, and sum of the weights.
        foreground: predicted share of foreground, 0 to 1; if channels overlap, that of the largest.
        counts: number of voxels of each class, (C,).
    """

    entropy: list[float] = field(default_factory=list)
    weighted: list[tuple[float, float]] = field(default_factory=list)
    foreground: list[float] = field(default_factory=list)
    counts: list[torch.Tensor] = field(default_factory=list)

    @property
    def mean_entropy(self) -> float:
        """Mean voxel entropy over all windows, 0 to 1."""
        return float(np.mean(self.entropy))

    @property
    def foreground_entropy(self) -> float:
        """The same, each voxel weighted by its probability of foreground."""
        total, weight = np.sum(self.weighted, axis=0)
        return float(total / max(weight, np.finfo(float).tiny))

    def entropies(self, moment: str) -> dict[str, float]:
        """Return both means, as `entropy_<moment>` and `foreground_entropy_<moment>`."""
        return {f"entropy_{moment}": self.mean_entropy, f"foreground_entropy_{moment}": self.foreground_entropy}

    def subset(self, windows: Sequence[int]) -> PredictionStats:
        """Return the statistics of some windows."""
        lists = (self.entropy, self.weighted, self.foreground, self.counts)
        return PredictionStats(*([items[index] for index in windows] for items in lists))

    @property
    def volumes(self) -> torch.Tensor:
        """Number of voxels of each class over all windows, (C,)."""
        return torch.stack(self.counts).sum(dim=0)


@torch.no_grad()
def measure(network: Callable[..., Any], crops: Sequence[Crop], settings: ETTASettings) -> PredictionStats:
    """Predict each window and compute its statistics.

    Args:
        network: a function of windows that returns logits; in the mode that it predicts in.
        crops: functions that return the windows, (1, C, ...) each.
        settings: its `activation`.
    """
    stats = PredictionStats()
    for crop in crops:
        logits = logits_of(network, crop())
        counts = class_counts(logits, activation=settings.activation)
        foreground = counts.max() if settings.activation == "sigmoid" else counts[1:].sum()
        entropy = voxel_entropy(logits, activation=settings.activation)
        weight = foreground_weight(logits, activation=settings.activation)
        stats.entropy.append(float(entropy.mean()))
        stats.weighted.append((float((weight * entropy).sum()), float(weight.sum())))
        stats.foreground.append(float(foreground) / logits[:, 0].numel())
        stats.counts.append(counts)
    return stats


def logits_of(network: Callable[..., Any], crop: torch.Tensor) -> torch.Tensor:
    """Run the network on a window and return its logits, the first of several outputs.

    Raises:
        InputError: the output is not a tensor of logits.
    """
    output = network(crop)
    logits = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(logits, torch.Tensor) or logits.ndim < 3:
        raise InputError(
            f"{type(network).__name__} returns {type(logits).__name__}, not logits (B, C, ...): test-time adaptation "
            "needs a network that returns the logits, alone or as the first of several outputs."
        )
    return logits


def verdict(before: PredictionStats, after: PredictionStats, settings: ETTASettings) -> str:
    """Decide whether adapted weights may be used.

    Args:
        before: statistics of the plain prediction.
        after: statistics of the adapted one on the same windows.
        settings: its `min_entropy_drop`, `volume_band` and `min_voxels`.

    Returns:
        The reason why not; "" if it may.
    """
    least = settings.least_drop("weights")
    return entropy_verdict(before, after, least) or _volume_verdict(before, after, settings)


def input_verdict(before: PredictionStats, after: PredictionStats, least: float, settings: ETTASettings) -> str:
    """Decide whether a changed input may be used.

    A class may grow, as an organ that the plain prediction lacks may come back; but a class that vanishes leaves a
    prediction that is certain, and wrong.

    Args:
        before: statistics of the plain prediction.
        after: statistics of the adapted one on the same windows.
        least: smallest drop of the foreground's entropy, see `ETTASettings.least_drop`.
        settings: the lower end of its `volume_band`, and `min_voxels`.

    Returns:
        The reason why not; "" if it may.
    """
    return entropy_verdict(before, after, least) or _volume_verdict(before, after, settings, may_grow=True)


def entropy_verdict(before: PredictionStats, after: PredictionStats, least: float) -> str:
    """Return why the entropies refuse an adaptation; "" if they do not.

    Args:
        before: statistics of the plain prediction.
        after: statistics of the adapted one on the same windows.
        least: see `ETTASettings.least_drop`.
    """
    if not after.mean_entropy < before.mean_entropy:
        return "entropy did not drop"
    drop = 1 - after.foreground_entropy / max(before.foreground_entropy, np.finfo(float).tiny)
    if not drop >= least:
        return f"foreground entropy dropped by {drop:.1%}, need {least:.1%}"
    return ""


def _volume_verdict(
    before: PredictionStats, after: PredictionStats, settings: ETTASettings, *, may_grow: bool = False
) -> str:
    """Return why the volumes refuse an adaptation; "" if they do not."""
    low, high = settings.volume_band
    adapted, plain = after.volumes + settings.min_voxels, before.volumes + settings.min_voxels
    ratios = torch.where(adapted == plain, 1.0, adapted / plain)
    if may_grow:
        ratios = ratios.clamp(max=1)
        if settings.activation == "softmax":
            ratios[0] = 1  # the background makes room for what grows
    worst = int(ratios.log().abs().argmax())
    if not (low <= float(ratios.min()) and float(ratios.max()) <= high):
        return f"volume of class {worst} changed by a factor of {float(ratios[worst]):.2f}"
    return ""
