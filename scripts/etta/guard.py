"""What a network predicts on the reference windows, in numbers, and whether an adaptation may be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from scripts.etta.objectives import class_counts, foreground_weight, marginal, voxel_entropy
from scripts.etta.settings import ETTASettings

Crop = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Look:
    """What a network predicts on the reference windows, in numbers; each list has one item a window.

    Attributes:
        entropy: mean voxel entropy.
        weighted: sum of entropies weighted by the probability of foreground, and sum of the weights.
        foreground: predicted share of foreground; where channels overlap, that of the largest.
        marginals: mean probabilities (C,).
        counts: voxels of each class (C,).
    """

    entropy: list[float] = field(default_factory=list)
    weighted: list[tuple[float, float]] = field(default_factory=list)
    foreground: list[float] = field(default_factory=list)
    marginals: list[torch.Tensor] = field(default_factory=list)
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

    @property
    def volumes(self) -> torch.Tensor:
        """Voxels of each class over all windows, (C,)."""
        return torch.stack(self.counts).sum(dim=0)


@torch.no_grad()
def look_at(network: torch.nn.Module, crops: Sequence[Crop], settings: ETTASettings) -> Look:
    """Predict each window and keep the numbers."""
    look = Look()
    for crop in crops:
        logits = logits_of(network, crop())
        counts = class_counts(logits, activation=settings.activation)
        foreground = counts.max() if settings.activation == "sigmoid" else counts[1:].sum()
        entropy = voxel_entropy(logits, activation=settings.activation)
        weight = foreground_weight(logits, activation=settings.activation)
        look.entropy.append(float(entropy.mean()))
        look.weighted.append((float((weight * entropy).sum()), float(weight.sum())))
        look.foreground.append(float(foreground) / logits[:, 0].numel())
        look.marginals.append(marginal(logits, activation=settings.activation))
        look.counts.append(counts)
    return look


def logits_of(network: torch.nn.Module, crop: torch.Tensor) -> torch.Tensor:
    """Run the network on a window and take its logits; of many outputs the first.

    Raises:
        ValueError: there are none.
    """
    output = network(crop)
    logits = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(logits, torch.Tensor) or logits.ndim < 3:
        raise ValueError(
            f"{type(network).__name__} returns {type(logits).__name__}, not logits (B, C, ...): test-time adaptation "
            "works with networks that return a tensor, or several of which the first is the prediction."
        )
    return logits


def verdict(before: Look, after: Look, settings: ETTASettings) -> str:
    """Say why an adaptation is refused; "" if it is not.

    Args:
        before: look of the network as it was.
        after: look of the adapted one, at the same windows.
        settings: its `min_fall`, `volume_band` and `min_voxels`.
    """
    if not after.mean_entropy < before.mean_entropy:
        return "entropy did not fall"
    fall = 1 - after.foreground_entropy / max(before.foreground_entropy, np.finfo(float).tiny)
    if not fall >= settings.min_fall:
        return f"entropy of the foreground fell by {fall:.1%} only"
    low, high = settings.volume_band
    ratios = (after.volumes + settings.min_voxels) / (before.volumes + settings.min_voxels)
    worst = int(ratios.log().abs().argmax())
    if not (low <= float(ratios.min()) and float(ratios.max()) <= high):
        return f"volume of class {worst} would change {float(ratios[worst]):.2f}-fold"
    return ""
