"""What a user sets of entropy test-time adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from scripts.etta.objectives import Activation, Objective

Keep = Literal["best", "last"]
Optimizer = Literal["adam", "sgd"]
Statistics = Literal["trained", "case"]

CHOICES = {
    "optimizer": Optimizer,
    "keep": Keep,
    "objective": Objective,
    "activation": Activation,
    "batch_statistics": Statistics,
}
LEAST = {"steps": 0, "lr": 0, "hold": 0, "min_fall": 0, "windows_per_step": 1, "min_voxels": 0, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class ETTASettings:
    """How a network adapts to a case, and when the result is used.

    Args:
        steps: of the optimizer; 0: the plain prediction, bit for bit.
        lr: learning rate.
        keep: which step counts: the one after which the foreground's entropy was lowest, or the last.
        optimizer: made anew for each case.
        objective: see `scripts.etta.objectives.window_loss`.
        hold: weight of the term that holds each window's class marginal to that of the unadapted network; from the
            second step on, as they are equal before the first.
        windows_per_step: windows whose gradients are averaged; None: all windows of the inferer, as the paper has it.
        activation: softmax for classes of which a voxel has one, sigmoid for channels that overlap.
        batch_statistics: of BatchNorm layers: as trained, or those of the case, as the paper's text has it.
        min_fall: of the foreground's entropy, as a share of what it was; below it, the plain network predicts.
        volume_band: least and greatest ratio of a class's adapted volume to its plain one.
        min_voxels: added to both volumes before they are compared, so that a few voxels decide nothing.
        guard: False accepts every adaptation; for measuring what the guard is worth.
        seed: of the choice of windows, the same for each case.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int = 2
    lr: float = 0.05
    keep: Keep = "best"
    optimizer: Optimizer = "adam"
    objective: Objective = "entropy"
    hold: float = 0.0
    windows_per_step: int | None = 3
    activation: Activation = "softmax"
    batch_statistics: Statistics = "trained"
    min_fall: float = 0.03
    volume_band: Sequence[float] = (0.25, 4.0)
    min_voxels: int = 100
    guard: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kinds in CHOICES.items():
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(get_args(kinds))}.")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not (name == "windows_per_step" and value is None) and not value >= least:
                raise ValueError(f"{name} is {value!r}: give {least} or more.")
        low, high = self.volume_band
        if not 0 <= low <= 1 <= high:
            raise ValueError(f"volume_band is {list(self.volume_band)}: give two ratios, one below 1 and one above.")
