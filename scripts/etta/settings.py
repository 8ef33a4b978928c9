"""Settings of entropy test-time adaptation, with their defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.etta.objectives import Activation, mean_entropy
from scripts.etta.spectrum import TrainingSpectrum

Adapt = Literal["input", "weights", "both"]
Keep = Literal["best", "last"]
Optimizer = Literal["adam", "sgd"]
Statistics = Literal["trained", "case"]
Objective = Callable[..., torch.Tensor]

CHOICES = {"adapt": Adapt, "optimizer": Optimizer, "keep": Keep, "activation": Activation}
CHOICES |= {"batch_statistics": Statistics}
_DEFAULT = "scripts.etta.objectives.mean_entropy"
LEAST_DROP = {"input": 0.1, "spectrum": 0.03, "weights": 0.03}
"""Of the foreground's entropy, by what adapts; a filter to the training spectrum is computed, not searched."""
MINIMA = {"steps": 0, "lr": 0, "min_entropy_drop": 0, "windows_per_step": 1, "min_voxels": 0, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class ETTASettings:
    """What adapts to a case, how, and when the result is used.

    Args:
        adapt: the input, by candidates of `scripts.etta.input_candidates`; the weights of the normalization layers, as
            in the paper; or both, the input first. The next six are of the weights alone.
        steps: number of optimizer steps; 0 leaves the weights as they are.
        lr: learning rate.
        keep: which step is used: the one with the lowest foreground entropy, or the last.
        optimizer: a new one for each case.
        objective: the loss of a window, a function of `logits` (1, C, ...) and `activation`; the mean entropy is the
            paper's. Others, which were not better, are in `benchmarks/etta/objectives.py`.
        batch_statistics: of BatchNorm layers: as trained, or those of the case, as in the paper's text.
        windows_per_step: number of windows whose gradients are averaged; None takes all windows of the inferer, as in
            the paper, and measures predictions on all of them.
        activation: softmax for exclusive classes, sigmoid for channels that overlap.
        spectrum: of the training images, to which the input is filtered; None for gammas alone.
        min_entropy_drop: smallest relative drop of the foreground's entropy; below it, the plain prediction is used.
            None: `LEAST_DROP`.
        volume_band: smallest and largest ratio of the volume of a class after adapting weights to that before; of an
            adapted input the smallest alone.
        min_voxels: added to both volumes before they are compared, so that a few voxels do not matter.
        guard: False accepts every adaptation, to measure the effect of the guard; also "true" or "false".
        seed: of the choice of windows, the same for each case.

    Raises:
        InputError: a value is out of range.

    >>> ETTASettings(steps=3).lr
    0.05
    """

    adapt: Adapt = "input"
    steps: int = 2
    lr: float = 0.05
    keep: Keep = "best"
    optimizer: Optimizer = "adam"
    objective: Objective = mean_entropy
    windows_per_step: int | None = 3
    activation: Activation = "softmax"
    batch_statistics: Statistics = "trained"
    spectrum: TrainingSpectrum | None = None
    min_entropy_drop: float | None = None
    volume_band: Sequence[float] = (0.25, 4.0)
    min_voxels: int = 100
    guard: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "guard", parse_flag(self.guard, "guard"))
        for name, kinds in CHOICES.items():
            if getattr(self, name) not in get_args(kinds):
                raise InputError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(get_args(kinds))}.")
        if not callable(self.objective):
            raise InputError(f"objective is {self.objective!r}: give a function of logits, such as {_DEFAULT}.")
        for name, minimum in MINIMA.items():
            value = getattr(self, name)
            is_number = isinstance(value, int | float)  # a setting from the command line may be text
            may_be_none = name in ("windows_per_step", "min_entropy_drop")
            if not (may_be_none and value is None) and not (is_number and value >= minimum):
                raise InputError(f"{name} is {value!r}: give {minimum} or more.")
        low, high = self.volume_band
        if not 0 <= low <= 1 <= high:
            raise InputError(f"volume_band is {list(self.volume_band)}: give two ratios, one below 1 and one above.")

    def least_drop(self, adapting: Literal["input", "spectrum", "weights"]) -> float:
        """Return the smallest drop of the foreground's entropy that is accepted."""
        return LEAST_DROP[adapting] if self.min_entropy_drop is None else self.min_entropy_drop

    @property
    def adapts_weights(self) -> bool:
        """Whether optimizer steps are taken."""
        return self.adapt != "input" and self.steps > 0
