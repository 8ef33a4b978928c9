"""Choose changes of an image that lower the entropy of the prediction; the network stays as it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_tensor

from scripts.etta.guard import PredictionStats, input_verdict, logits_of, measure
from scripts.etta.input_candidates import Change, Gamma, changed, intensities
from scripts.etta.nonuniformity import OrganSamples
from scripts.etta.outcome import ACCEPTED, Outcome
from scripts.etta.settings import ETTASettings
from scripts.etta.spectrum import Sharpness
from scripts.etta.windows import choose, crops, measured_windows
from scripts.inference.window_layout import WindowLayout

LOW_GAMMA, HIGH_GAMMA = Gamma(0.63), Gamma(1.6)
MORE_OF_LOW_GAMMA = (Gamma(0.4), Gamma(0.8))
MORE_OF_HIGH_GAMMA = (Gamma(2.5), Gamma(1.26))
MAX_NONUNIFORMITY = 0.25
"""Above it, gammas are not tried: a gain that differs by 28 % from place to place."""
LOOK_WINDOWS = 2  # of the reference windows, on which each candidate is measured; 1 if there are several channels
Look = Callable[[Change], PredictionStats]
Found = dict[Change, PredictionStats]
Chosen = dict[int, tuple[Change, ...]]


@torch.no_grad()
def choose_input(
    network: Callable[..., Any], image: torch.Tensor, layout: WindowLayout, settings: ETTASettings
) -> tuple[torch.Tensor, Outcome]:
    """Choose how to change an image for a network; no gradient is taken.

    1. The network predicts the reference windows of the plain image.
    2. For each channel in turn, gammas are measured on two of these windows, unless the intensities of the organs
       differ from place to place, and that with the least `score` is kept if its entropies are accepted there. Then, on
       top of it, the filter to the training spectrum.
    3. The network predicts all reference windows of the changed image, and the guard decides, see `input_verdict`.

    Args:
        network: any function of windows that returns logits, in the mode that it predicts in.
        image: one case.
        layout: how the inferer divides it into windows.
        settings: its `guard`, `min_entropy_drop`, `volume_band`, `min_voxels`, `activation`, `spectrum`, `seed` and
            `windows_per_step`.

    Returns:
        The changed image, or `image` itself if the guard refuses; and the outcome.

    Shape:
        image: (1, C, ...) keeps its shape.

    Raises:
        InputError: `spectrum` is of images with other channels.
    """
    start = time.perf_counter()
    search = _Search(network, image, layout, settings)
    chosen, tried, reason = search.run()
    result, after = image, search.before
    if chosen:
        result = changed(image, chosen, search.seen)
        moved = layout.padded(convert_to_tensor(result, track_meta=False))
        after = measure(network, crops(moved, search.windows, search.device), settings)
        least = max(_least_drop(change, settings) for changes in chosen.values() for change in changes)
        reason = input_verdict(search.before, after, least, settings)
    accepted = bool(chosen) and (not reason or not settings.guard)
    return result if accepted else image, Outcome(
        accepted=accepted,
        reason=reason or ACCEPTED,
        candidate=_named(chosen or tried, channels=len(search.seen)),
        **search.before.entropies("before"),
        **after.entropies("after"),
        seconds=time.perf_counter() - start,
        windows=len(search.windows),
    )


def score(before: PredictionStats, after: PredictionStats) -> float:
    """Return log(ent / ent0) + log(fent / fent0), where ent is the mean entropy and fent that of the foreground.

    Returns:
        Infinity if an entropy is not finite.
    """
    pairs = ((after.mean_entropy, before.mean_entropy), (after.foreground_entropy, before.foreground_entropy))
    tiny = np.finfo(float).tiny
    value = sum(math.log(max(new, tiny) / max(old, tiny)) for new, old in pairs)
    return value if math.isfinite(value) else math.inf


def gammas(look: Look, before: PredictionStats) -> Found:
    """Look at gammas in two rounds.

    Args:
        look: measures a change.
        before: statistics without it.
    """
    found: Found = {change: look(change) for change in (LOW_GAMMA, HIGH_GAMMA)}
    low, high = (score(before, stats) for stats in found.values())
    more: tuple[Change, ...] = ()
    if low < min(0, high):
        more = MORE_OF_LOW_GAMMA
    elif high < 0:
        more = MORE_OF_HIGH_GAMMA
    return found | {change: look(change) for change in more}


class _Search:
    """The plain prediction of the reference windows, and the search that starts from it; see `choose_input`."""

    def __init__(
        self, network: Callable[..., Any], image: torch.Tensor, layout: WindowLayout, settings: ETTASettings
    ) -> None:
        self.network, self.image, self.settings = network, image, settings
        self.device, self.seen = _device_of(network, image), intensities(image)
        padded = layout.padded(convert_to_tensor(image, track_meta=False))
        self.windows = measured_windows(layout, padded, every=settings.windows_per_step is None)
        self.crops = crops(padded, self.windows, self.device)
        self.samples = OrganSamples(padded.shape[2:], self.seen)
        upcoming = iter(self.windows)

        def sampled(window: torch.Tensor) -> torch.Tensor:
            logits, place = logits_of(network, window), next(upcoming)
            if settings.activation == "softmax":
                self.samples.add(window, logits, place)
            return logits

        self.before = measure(sampled, self.crops, settings)

    def run(self) -> tuple[Chosen, Chosen, str]:
        """Return the changes to make, the least bad if there is none, and why there is none; by channel."""
        channels = [number for number, one in enumerate(self.seen) if one.high > one.low]
        generator = np.random.default_rng(self.settings.seed)
        count = LOOK_WINDOWS if len(channels) == 1 else 1
        looks = choose(self.before.entropy, self.before.foreground, count=count, generator=generator)
        why = "intensities differ from place to place" if channels else "no channel has contrast"
        best, chosen, refused = self.before.subset(looks), {}, (math.inf, {}, why)
        for channel in channels:
            for stage in self._stages(channel):
                found = stage(partial(self._look, looks, chosen, channel), best)
                change, stats = min(found.items(), key=partial(_score_of, best))
                reason = input_verdict(best, stats, _least_drop(change, self.settings), self.settings)
                if not reason or not self.settings.guard:
                    chosen, best = _with(chosen, channel, change), stats
                elif score(best, stats) <= refused[0]:
                    refused = score(best, stats), {channel: (change,)}, reason
        return chosen, refused[1], refused[2]

    def _stages(self, channel: int) -> list[Callable[[Look, PredictionStats], Found]]:
        """Return what looks at each kind of change of a channel."""
        stages = [gammas] if self.samples.nonuniformity(channel) <= MAX_NONUNIFORMITY else []
        spectrum = self.settings.spectrum
        sharpness = None if spectrum is None else spectrum.filter_of(self.image, channel)
        return stages if sharpness is None else [*stages, lambda look, _: {sharpness: look(sharpness)}]

    def _look(self, windows: Sequence[int], chosen: Chosen, channel: int, change: Change) -> PredictionStats:
        """Predict some of the reference windows with one change more."""
        trial = _with(chosen, channel, change)
        return measure(
            self.network, [lambda i=i: changed(self.crops[i](), trial, self.seen) for i in windows], self.settings
        )


def _with(chosen: Chosen, channel: int, change: Change) -> Chosen:
    return {**chosen, channel: (*chosen.get(channel, ()), change)}


def _score_of(before: PredictionStats, item: tuple[Change, PredictionStats]) -> float:
    return score(before, item[1])


def _least_drop(change: Change, settings: ETTASettings) -> float:
    return settings.least_drop("spectrum" if isinstance(change, Sharpness) else "input")


def _named(chosen: Chosen, *, channels: int) -> str:
    """Write `gamma 0.63, spectrum`, or with several channels `0: gamma 0.63; 2: spectrum`."""
    names = {channel: ", ".join(map(str, changes)) for channel, changes in chosen.items()}
    if channels == 1:
        return "".join(names.values())
    return "; ".join(f"{channel}: {name}" for channel, name in names.items())


def _device_of(network: Callable[..., Any], image: torch.Tensor) -> torch.device:
    """Return the device of the parameters, or of the image if there are none, as in a compiled network."""
    parameters = network.parameters() if isinstance(network, torch.nn.Module) else iter(())
    return next(parameters, image).device
