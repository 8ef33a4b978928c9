"""Other objectives of test-time adaptation, which were not better than the mean entropy, for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from scripts.etta.objectives import Activation, voxel_entropy
from scripts.etta.settings import ETTASettings

MIN_CLASS_SHARE = 1e-4  # of a window's voxels: the mean over fewer is noise


def balanced_entropy(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Average the entropy within each predicted class, then over the classes with enough voxels.

    The background thus does not outweigh small organs.

    Shape:
        (B, C, ...) becomes ().

    Source:
        After InTEnt (arXiv 2402.09604), which balances foreground and background.
    """
    entropy = voxel_entropy(logits, activation=activation)
    if activation == "sigmoid":
        classes, n = (logits.detach().flatten(2).max(dim=1).values.flatten() > 0).long(), 2
    else:
        classes, n = logits.detach().argmax(dim=1).flatten(), logits.shape[1]
    counts = torch.bincount(classes, minlength=n)
    sums = torch.zeros(n, device=entropy.device).index_add(0, classes, entropy.flatten())
    enough = counts >= max(1, MIN_CLASS_SHARE * classes.numel())
    return (sums[enough] / counts[enough]).mean()


def confident_entropy(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Average the entropy weighted by 1 - entropy, so that voxels that are a guess are not pushed either way.

    Shape:
        (B, C, ...) becomes ().

    Source:
        After EATA (arXiv 2204.02610), whose weight is a threshold's exponential.
    """
    entropy = voxel_entropy(logits, activation=activation)
    weight = 1 - entropy.detach()
    return (weight * entropy).sum() / weight.sum().clamp_min(1)


OBJECTIVES = {"balanced": balanced_entropy, "confident": confident_entropy}


def etta_settings(options: Mapping[str, Any]) -> ETTASettings:
    """Make settings from options that JSON can hold: `objective` is a key of `OBJECTIVES`."""
    named = {"objective": OBJECTIVES[options["objective"]]} if "objective" in options else {}
    return ETTASettings(**{**options, **named})
