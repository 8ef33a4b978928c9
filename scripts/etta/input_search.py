"""Choose the change of an image that lowers the entropy of the prediction; the network stays as it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_tensor

from scripts.etta.guard import Crop, PredictionStats, entropy_verdict, measure
from scripts.etta.input_candidates import Candidate, Intensities, changed, intensities
from scripts.etta.outcome import ACCEPTED, Outcome
from scripts.etta.settings import ETTASettings
from scripts.etta.windows import choose, crops, measured_windows
from scripts.inference.window_layout import WindowLayout

LOW_GAMMA, HIGH_GAMMA, UNSHARP = FIRST = Candidate("gamma", 0.63), Candidate("gamma", 1.6), Candidate("unsharp", 1)
MORE_OF_LOW_GAMMA = (Candidate("gamma", 0.4), Candidate("gamma", 0.8))
MORE_OF_HIGH_GAMMA = (Candidate("gamma", 2.5), Candidate("gamma", 1.26))
MORE_UNSHARP = (Candidate("unsharp", 2.5),)
LOOK_WINDOWS = 2  # of the reference windows, on which each candidate is measured; 1 if there are several channels
Look = Callable[[Candidate], PredictionStats]


@torch.no_grad()
def choose_input(
    network: Callable[..., Any], image: torch.Tensor, layout: WindowLayout, settings: ETTASettings
) -> tuple[torch.Tensor, Outcome]:
    """Choose how to change an image for a network; no gradient is taken.

    1. The network predicts the reference windows of the plain image.
    2. For each channel in turn, candidates are measured on two of these windows; that with the least `score` is kept
       if its entropies are accepted there.
    3. The network predicts all reference windows of the changed image, and the guard decides by the entropies: an organ
       that the plain prediction lacks may come back, so volumes do not count.

    Args:
        network: any function of windows that returns logits, in the mode that it predicts in.
        image: one case.
        layout: how the inferer divides it into windows.
        settings: its `guard`, `min_entropy_drop`, `activation`, `seed` and `windows_per_step`.

    Returns:
        The changed image, or `image` itself if the guard refuses; and the outcome.

    Shape:
        image: (1, C, ...) keeps its shape.
    """
    start = time.perf_counter()
    padded = layout.padded(convert_to_tensor(image, track_meta=False))
    windows = measured_windows(layout, padded, every=settings.windows_per_step is None)
    device = _device_of(network, image)
    plain_crops = crops(padded, windows, device)
    before, seen = measure(network, plain_crops, settings), intensities(image)
    chosen, tried, reason = _search(network, plain_crops, before, seen, settings)
    result, after = image, before
    if chosen:
        result = changed(image, chosen, seen)
        moved = layout.padded(convert_to_tensor(result, track_meta=False))
        after = measure(network, crops(moved, windows, device), settings)
        reason = entropy_verdict(before, after, settings.least_drop("input"))
    accepted = bool(chosen) and (not reason or not settings.guard)
    return result if accepted else image, Outcome(
        accepted=accepted,
        reason=reason or ACCEPTED,
        candidate=_named(chosen or tried, channels=len(seen)),
        **before.entropies("before"),
        **after.entropies("after"),
        seconds=time.perf_counter() - start,
        windows=len(windows),
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


def best_candidate(look: Look, before: PredictionStats) -> tuple[Candidate, PredictionStats]:
    """Look at candidates in two rounds and return that with the least score.

    Args:
        look: measures a candidate.
        before: statistics without a change.
    """
    found = {candidate: look(candidate) for candidate in FIRST}
    scores = {candidate: score(before, stats) for candidate, stats in found.items()}
    more: tuple[Candidate, ...] = ()
    if scores[LOW_GAMMA] < min(0, scores[HIGH_GAMMA]):
        more += MORE_OF_LOW_GAMMA
    elif scores[HIGH_GAMMA] < 0:
        more += MORE_OF_HIGH_GAMMA
    if found[UNSHARP].mean_entropy < before.mean_entropy:
        more += MORE_UNSHARP
    found |= {candidate: look(candidate) for candidate in more}
    best = min(found, key=lambda candidate: score(before, found[candidate]))
    return best, found[best]


def _search(
    network: Callable[..., Any],
    plain_crops: Sequence[Crop],
    before: PredictionStats,
    seen: Sequence[Intensities],
    settings: ETTASettings,
) -> tuple[dict[int, Candidate], dict[int, Candidate], str]:
    """Return the changes to make, the least bad if there is none, and why there is none; a number per channel."""
    channels = [number for number, one in enumerate(seen) if one.high > one.low]
    generator = np.random.default_rng(settings.seed)
    count = LOOK_WINDOWS if len(channels) == 1 else 1
    looks = choose(before.entropy, before.foreground, count=count, generator=generator)
    best, chosen, refused = before.subset(looks), {}, (math.inf, {}, "no channel has contrast")
    for channel in channels:

        def look(candidate: Candidate, *, channel: int = channel) -> PredictionStats:
            trial = {**chosen, channel: candidate}
            return measure(network, [lambda i=i: changed(plain_crops[i](), trial, seen) for i in looks], settings)

        candidate, found = best_candidate(look, best)
        reason = entropy_verdict(best, found, settings.least_drop("input"))
        if not reason or not settings.guard:
            chosen[channel], best = candidate, found
        elif score(best, found) <= refused[0]:
            refused = score(best, found), {channel: candidate}, reason
    return chosen, refused[1], refused[2]


def _named(chosen: dict[int, Candidate], *, channels: int) -> str:
    """Write `gamma 0.63`, or with several channels `0: gamma 0.63; 2: unsharp 1`."""
    if channels == 1:
        return "".join(map(str, chosen.values()))
    return "; ".join(f"{channel}: {candidate}" for channel, candidate in chosen.items())


def _device_of(network: Callable[..., Any], image: torch.Tensor) -> torch.device:
    """Return the device of the parameters, or of the image if there are none, as in a compiled network."""
    parameters = network.parameters() if isinstance(network, torch.nn.Module) else iter(())
    return next(parameters, image).device
