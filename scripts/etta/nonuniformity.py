"""How much the intensities of a case differ from place to place, by the classes that the network predicts.

An organ has about the same intensity everywhere. Under a gain that drifts along the body, or near a coil, all organs
are brighter at one place than at another. No curve of intensities undoes that, and one that fits a part of the image
can make the network certain of a wrong prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from scripts.etta.input_candidates import Intensities
from scripts.etta.objectives import probabilities
from scripts.inference.window_layout import Window

RIDGE = 0.001
"""Penalty of the coefficients, as a share of the weights of all voxels: without it noise would be fitted."""
MIN_PROBABILITY = 0.8
MARGIN = 0.001
"""Of the range of intensities at either end, where values are clipped."""
MIN_VOXELS, MAX_VOXELS = 500, 20_000
"""Least over all windows, and most of each window."""
ROUNDS = 4


class OrganSamples:
    """Voxels of the windows of an image that are predicted as organs with some certainty.

    Args:
        size: of the image, in voxels.
        seen: of its channels.
    """

    def __init__(self, size: Sequence[int], seen: Sequence[Intensities]) -> None:
        self.size, self.seen = tuple(size), seen
        self._parts: list[tuple[torch.Tensor, ...]] = []

    def add(self, image: torch.Tensor, logits: torch.Tensor, window: Window) -> None:
        """Add the voxels of a window.

        Shape:
            image: (1, C, ...); logits: (1, K, ...), of exclusive classes, the first the background.
        """
        p, classes = probabilities(logits, activation="softmax")[0].max(dim=0)
        chosen = torch.nonzero((p >= MIN_PROBABILITY) & (classes > 0))
        chosen = chosen[:: 1 + len(chosen) // MAX_VOXELS]
        at, starts = tuple(chosen.T), torch.tensor([part.start for part in window])
        places = (chosen.cpu() + starts).double() / (torch.tensor(self.size) - 1).clamp(min=1) * 2 - 1
        values = torch.stack([channel[at] for channel in image[0].float()])
        self._parts.append((places.T, values.cpu(), classes[at].cpu()))

    def nonuniformity(self, channel: int) -> float:
        """Return the logarithm of the ratio of the largest to the smallest gain within the organs.

        The logarithm of an intensity is fitted by an offset of its class and a polynomial of degree 2 of the place. 0
        if there are too few voxels.
        """
        if not self._parts:
            return 0.0
        places, values, classes = (torch.cat(part, dim=-1) for part in zip(*self._parts, strict=True))
        seen = self.seen[channel]
        share = (values[channel].double() - seen.low) / (seen.high - seen.low)
        inside = (share > MARGIN) & (share < 1 - MARGIN) & (values[channel] != 0)
        if int(inside.sum()) < MIN_VOXELS:
            return 0.0
        axes = [*places[:, inside]]
        pairs = itertools.combinations_with_replacement(axes, 2)
        terms = torch.stack([*axes, *(one * other for one, other in pairs)])
        gain = _robust_fit(share[inside].log(), classes[inside], terms) @ terms
        return float(gain.max() - gain.min())


def _robust_fit(log: torch.Tensor, classes: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """Fit an offset of each class and the coefficients of terms (T, N); return the coefficients.

    Classes count by the root of their voxels; voxels far from the fit count less, by Cauchy weights.
    """
    _, index, counts = classes.unique(return_inverse=True, return_counts=True)
    design = torch.cat([torch.nn.functional.one_hot(index).T.double(), terms])
    prior = (1 / counts.double().sqrt())[index]
    weights, penalty = prior, torch.full((len(design),), RIDGE).double()
    penalty[: len(counts)] = 1e-9
    for _ in range(ROUNDS):
        weighted = design * (weights / weights.sum())
        solution = torch.linalg.solve(weighted @ design.T + penalty.diag(), weighted @ log)
        residual = (log - solution @ design).abs()
        scale = 1.5 * residual.median().clamp(min=1e-3)
        weights = prior / (1 + (residual / scale) ** 2)
    return solution[len(counts) :]
