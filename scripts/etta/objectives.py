"""The objective of test-time adaptation, and measures of a prediction."""

from __future__ import annotations

import math
from typing import Literal

import torch

Activation = Literal["softmax", "sigmoid"]


def probabilities(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Turn logits into probabilities in float32, as half precision rounds small ones to zero.

    Args:
        logits: of one or more windows.
        activation: softmax for exclusive classes, sigmoid for channels that overlap.

    Shape:
        (B, C, ...) keeps its shape.
    """
    logits = logits.float()
    return logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()


def voxel_entropy(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Compute the entropy of each voxel, from 0 (certain) to 1 (all classes equally likely).

    Args:
        logits: of one or more windows.
        activation: softmax: Shannon entropy over log C; sigmoid: mean of the channels' binary entropy over log 2.

    Shape:
        (B, C, ...) becomes (B, ...).

    Source:
        Wang et al., Tent (arXiv 2006.10726), equation 1. We divide by the maximum, so that one learning rate and one
        threshold serve any number of classes.
    """
    logits = logits.float()
    if activation == "softmax":
        log_p = logits.log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1) / math.log(max(2, logits.shape[1]))
    p = logits.sigmoid()
    softplus = torch.nn.functional.softplus
    return (p * softplus(-logits) + (1 - p) * softplus(logits)).mean(dim=1) / math.log(2)


def foreground_weight(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Return the probability that a voxel is foreground, as a weight of its entropy.

    Most of an image is background, where the network is certain even if it fails on the organs.

    Args:
        logits: of one or more windows.
        activation: softmax: the probability of all channels but 0; sigmoid: that of the most likely channel.

    Shape:
        (B, C, ...) becomes (B, ...).
    """
    p = probabilities(logits, activation=activation)
    return 1 - p[:, 0] if activation == "softmax" else p.amax(dim=1)


def mean_entropy(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Average the entropy over the voxels of a window: the paper's objective.

    Shape:
        (B, C, ...) becomes ().

    Source:
        UKBOB (arXiv 2504.06908), ETTA.
    """
    return voxel_entropy(logits, activation=activation).mean()


def class_counts(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Count the voxels of each channel: by argmax, or by p > 0.5 if channels overlap.

    Shape:
        (B, C, ...) becomes (C,), int64, on the CPU.
    """
    if activation == "sigmoid":
        return (logits > 0).transpose(0, 1).flatten(1).sum(dim=1).cpu()
    return torch.bincount(logits.argmax(dim=1).flatten(), minlength=logits.shape[1]).cpu()
