"""What test-time adaptation minimises, and what it measures of a prediction."""

from __future__ import annotations

import math
from typing import Literal

import torch

Activation = Literal["softmax", "sigmoid"]
Objective = Literal["entropy", "balanced", "confident"]

MIN_CLASS_SHARE = 1e-4  # of a window's voxels: the mean over fewer is noise


def probabilities(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Turn logits into probabilities in float32, as half precision rounds small ones to zero.

    Args:
        logits: of one window or more.
        activation: softmax for classes of which a voxel has one, sigmoid for channels that overlap.

    Shape:
        (B, C, ...) keeps its shape.
    """
    logits = logits.float()
    return logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()


def voxel_entropy(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Measure how uncertain each voxel is: 0 is sure, 1 is what a guess would be.

    Args:
        logits: of one window or more.
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

    Most of an image is background of which the network is sure, whatever is wrong with its organs.

    Args:
        logits: of one window or more.
        activation: softmax: foreground is what is not channel 0; sigmoid: the likeliest channel.

    Shape:
        (B, C, ...) becomes (B, ...).
    """
    p = probabilities(logits, activation=activation)
    return 1 - p[:, 0] if activation == "softmax" else p.amax(dim=1)


def marginal(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Return the mean probability of each channel.

    Shape:
        (B, C, ...) becomes (C,).
    """
    return probabilities(logits, activation=activation).transpose(0, 1).flatten(1).mean(dim=1)


def divergence(before: torch.Tensor, after: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Measure how far class marginals moved: the Kullback-Leibler divergence of `after` from `before`.

    Rare classes count as their share does, so that an organ of a thousandth of the window may still come or go.

    Args:
        before: marginal of the network as it was.
        after: marginal of the adapted network.
        activation: softmax: one distribution over channels; sigmoid: one of two outcomes for each channel.

    Shape:
        (C,) and (C,) become ().
    """
    tiny = torch.finfo(torch.float32).tiny
    p, q = before.clamp_min(tiny), after.clamp_min(tiny)
    kl = (p * (p / q).log()).sum()
    if activation == "sigmoid":
        p, q = (1 - before).clamp_min(tiny), (1 - after).clamp_min(tiny)
        kl = (kl + (p * (p / q).log()).sum()) / len(before)
    return kl


def window_loss(
    logits: torch.Tensor,
    before: torch.Tensor,
    *,
    objective: Objective,
    activation: Activation,
    hold: float,
) -> torch.Tensor:
    """Compute the objective of one window.

    Args:
        logits: of the network in adaptation.
        before: the window's marginal by the network as it was.
        objective: `entropy`: mean over voxels (the paper's); `balanced`: mean over the predicted classes of the mean
            over their voxels, so that the background does not outvote small organs; `confident`: mean weighted by
            1 - entropy, so that voxels that are a guess are not pushed either way.
        activation: see `voxel_entropy`.
        hold: weight of the divergence of the marginal from `before`, 0 for none.

    Shape:
        logits (1, C, ...), before (C,); returns ().

    Source:
        entropy: UKBOB (arXiv 2504.06908), ETTA; balanced: after InTEnt (arXiv 2402.09604), which balances foreground
        and background; confident: after EATA (arXiv 2204.02610), whose weight is a threshold's exponential.
    """
    entropy = voxel_entropy(logits, activation=activation)
    if objective == "balanced":
        loss = _class_mean(entropy, logits.detach(), activation=activation)
    elif objective == "confident":
        weight = 1 - entropy.detach()
        loss = (weight * entropy).sum() / weight.sum().clamp_min(1)
    else:
        loss = entropy.mean()
    if not hold:
        return loss
    return loss + hold * divergence(before, marginal(logits, activation=activation), activation=activation)


def _class_mean(entropy: torch.Tensor, logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Average entropy within each predicted class, then over the classes that have voxels enough."""
    if activation == "sigmoid":
        found = logits.flatten(2).max(dim=1).values.flatten() > 0
        classes, n = found.long(), 2
    else:
        classes, n = logits.argmax(dim=1).flatten(), logits.shape[1]
    counts = torch.bincount(classes, minlength=n)
    sums = torch.zeros(n, device=entropy.device).index_add(0, classes, entropy.flatten())
    enough = counts >= max(1, MIN_CLASS_SHARE * classes.numel())
    return (sums[enough] / counts[enough]).mean()


def class_counts(logits: torch.Tensor, *, activation: Activation) -> torch.Tensor:
    """Count the voxels that each channel is given: by argmax, or by p > 0.5 where channels overlap.

    Shape:
        (B, C, ...) becomes (C,), int64, on the CPU.
    """
    if activation == "sigmoid":
        return (logits > 0).transpose(0, 1).flatten(1).sum(dim=1).cpu()
    return torch.bincount(logits.argmax(dim=1).flatten(), minlength=logits.shape[1]).cpu()
