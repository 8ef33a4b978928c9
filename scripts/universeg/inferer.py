"""Segment the slices of an image, class by class, by the example of a support set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor

from scripts.common.errors import InputError
from scripts.common.grids import Grid, describe_mismatch
from scripts.common.progress import progress_bar
from scripts.models.universeg import Support, UniverSeg
from scripts.universeg.support import SupportSet

SupportChoice = Literal["random", "nearest"]
SUPPORT_CHOICES: tuple[SupportChoice, ...] = get_args(SupportChoice)


class SupportInferer(Inferer):
    """Predict the probability of each class in each slice.

    Each class takes passes of its own, with the masks of that class: the network knows one class and the rest.

    - "random": of the support slices that show the class, `support_size` are drawn, `ensemble` times, and the
      probabilities are averaged. The draws depend on `seed` and class, not on the case. What the network computes of
      support alone, it computes once per draw.
    - "nearest": for each slice, the `support_size` support slices of the same volume that are nearest to it, whatever
      they show. A class that none of them shows is taken as absent from the slice.

    Args:
        support: the support set.
        support_size: number of support slices of a pass; fewer if there are no more.
        support_choice: see above.
        ensemble: number of draws.
        seed: of the draws.
        threshold: probability above which a pixel belongs to a class. It is the output's channel 0, so that the largest
            channel is the class.
        batch_size: slices that are predicted together, if they have the same support.
        progress: whether to show the slices that are done.

    Shape:
        inputs: (1, 1, H, W, Z) become (1, 1 + classes, H, W, Z).

    Raises:
        InputError: another choice or number, an ensemble of the nearest slices; while predicting: "nearest" without
            support slices of the volume.
    """

    def __init__(
        self,
        support: SupportSet,
        *,
        support_size: int = 64,
        support_choice: SupportChoice = "random",
        ensemble: int = 1,
        seed: int = 0,
        threshold: float = 0.5,
        batch_size: int = 4,
        progress: bool = False,
    ) -> None:
        if support_choice not in SUPPORT_CHOICES:
            raise InputError(f"support_choice is {support_choice!r}: give one of {', '.join(SUPPORT_CHOICES)}.")
        if min(support_size, ensemble, batch_size) < 1:
            raise InputError("support_size, ensemble and batch_size: give 1 or more.")
        if support_choice == "nearest" and ensemble > 1:
            raise InputError(f"ensemble is {ensemble}: the nearest slices are always the same; set it to 1.")
        self.support, self.support_size, self.support_choice = support, support_size, support_choice
        self.ensemble, self.seed, self.threshold = ensemble, seed, threshold
        self.batch_size, self.progress = batch_size, progress

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *_: object, **__: object
    ) -> torch.Tensor:
        """Predict the slices of one image."""
        if inputs.ndim != 5 or inputs.shape[:2] != (1, 1):
            raise InputError(f"the image has shape {tuple(inputs.shape)}: give one image (1, 1, H, W, Z).")
        slices = convert_to_tensor(inputs, track_meta=False)[0].movedim(-1, 0)  # (Z, 1, H, W)
        classes = self.support.values
        probabilities = torch.zeros(1 + len(classes), *slices.shape[2:], len(slices), device=slices.device)
        probabilities[0] = self.threshold
        passes = list(self._nearest(inputs) if self.support_choice == "nearest" else self._random(len(slices)))
        with progress_bar(total=len(passes), desc="passes", leave=False, disable=not self.progress) as bar:
            prepare = lru_cache(1)(lambda channel, places: self._prepare(network, channel, places, slices.device))
            for channel, places, where, weight in passes:
                logits = _unwrapped(network).segment(slices[where], prepare(channel, places))
                probabilities[channel, ..., where] += weight * logits[:, 0].float().sigmoid().movedim(0, -1)
                bar.update()
        return probabilities[None]

    def _prepare(self, network: UniverSeg, channel: int, places: tuple[int, ...], device: torch.device) -> Support:
        return _unwrapped(network).prepare(*(x.to(device) for x in self.support.tensors(places, channel)))

    def _random(self, n: int) -> Iterator[tuple[int, tuple[int, ...], slice, float]]:
        """Yield (channel, support slices, target slices, weight), those of the same support one after the other."""
        batches = [slice(start, min(start + self.batch_size, n)) for start in range(0, n, self.batch_size)]
        for channel in self.support.values:
            pool = self.support.showing(channel)
            draws = draw_supports(pool, self.support_size, self.ensemble, seed=(self.seed, channel))
            yield from ((channel, places, where, 1 / len(draws)) for places in draws for where in batches)

    def _nearest(self, inputs: torch.Tensor) -> Iterator[tuple[int, tuple[int, ...], slice, float]]:
        """Yield as `_random`; slices of a class that their support does not show are left out."""
        own = self._of_same_volume(inputs)
        for channel, value in self.support.values.items():
            shows = {place: bool((self.support.slices[place].label == value).any()) for place in own}
            for z in range(inputs.shape[-1]):
                near = sorted(own, key=lambda place, z=z: abs(self.support.slices[place].index - z))
                places = tuple(sorted(near[: self.support_size]))
                if any(shows[place] for place in places):
                    yield channel, places, slice(z, z + 1), 1.0

    def _of_same_volume(self, inputs: torch.Tensor) -> list[int]:
        """Return the support slices of the volume of the input."""
        affine = np.asarray(getattr(inputs, "affine", np.eye(4)), dtype=np.float64).reshape(-1, 4, 4)[0]
        grid = Grid(tuple(inputs.shape[2:]), affine)
        own = [place for place, one in enumerate(self.support.slices) if not describe_mismatch(one.grid, grid)]
        if not own or inputs.shape[-1] == 1:
            raise InputError(
                "support_choice is nearest, and no support slice is of this volume: label some of its slices, or set "
                "support_choice to random."
            )
        return own


def draw_supports(pool: Sequence[int], size: int, draws: int, *, seed: int | tuple[int, ...]) -> list[tuple[int, ...]]:
    """Draw support slices without repetition, several times; once if there are not more than `size`.

    >>> draw_supports([3, 5], 4, 10, seed=0)
    [(3, 5)]
    """
    if len(pool) <= size:
        return [tuple(pool)]
    generator = np.random.default_rng(seed)
    return [tuple(sorted(generator.choice(pool, size, replace=False).tolist())) for _ in range(draws)]


def _unwrapped(network: Callable[..., torch.Tensor]) -> UniverSeg:
    return getattr(network, "module", network)
