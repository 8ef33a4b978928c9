"""Entropy test-time adaptation (ETTA): a handler for evaluators, an inferer for programs that call only that.

Both adapt the normalization layers of any network to each case, use the result only where a guard accepts it, and
leave the network as it was. `scripts.etta.core` does the work, `ETTASettings` says how.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer

from scripts.cases import (
    CaseHandler,
    Collected,
    case_name,
    decollated,
    gather_cases,
    is_rank0,
    remember,
    source_path,
    write_table,
)
from scripts.etta.core import Outcome, adapted, affine_parameters
from scripts.etta.settings import ETTASettings
from scripts.etta.windows import Grid

COLUMNS = ["case", "accepted", "reason", "entropy_before", "entropy_after", "foreground_entropy_before"]
COLUMNS += ["foreground_entropy_after", "seconds", "peak_memory_mb", "windows"]
MEANS = ("accepted", "entropy_before", "entropy_after", "seconds")
logger = logging.getLogger(__name__)


class ETTAInferer(Inferer):
    """Adapt the network to each image before the wrapped inferer predicts it.

    Args:
        inferer: any sliding-window inferer of MONAI; its windows are those adapted to. Another inferer's image is
            one window.
        settings: see `ETTASettings`; its defaults where None.

    Attributes:
        outcomes: of the images of the last call.
    """

    def __init__(self, inferer: Inferer, settings: ETTASettings | None = None) -> None:
        super().__init__()
        self.inferer = inferer
        self.settings = settings or ETTASettings()
        self.outcomes: list[Outcome] = []

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Predict, each image of a batch by the network adapted to it alone.

        Args:
            inputs: images.
            network: a module with affine normalization layers, in the mode that it predicts in.
            args: handed to the wrapped inferer.
            kwargs: handed to the wrapped inferer.

        Shape:
            inputs: (B, C, ...); the result is what the wrapped inferer returns.

        Raises:
            ValueError: the network is no module, has nothing to adapt or takes more than an image.
        """
        self.outcomes = []
        if self.settings.steps == 0:
            self.outcomes = [Outcome(accepted=False, reason="steps is 0")] * len(inputs)
            return self.inferer(inputs, network, *args, **kwargs)
        if not isinstance(network, torch.nn.Module):
            raise ValueError(f"the network is {type(network).__name__}: pass the torch.nn.Module that is to adapt.")
        if args or "condition" in kwargs:
            raise ValueError("the network takes more than an image: leave test-time adaptation out.")
        predictions = [self._predict(image, network, **kwargs) for image in inputs.split(1)]
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions)

    def _predict(self, image: torch.Tensor, network: torch.nn.Module, **kwargs: Any) -> torch.Tensor:
        """Predict one image (1, C, ...)."""
        grid = Grid.of(self.inferer, image.shape[2:])
        with adapted(network, image, grid, self.settings) as outcome:
            self.outcomes.append(outcome)
            return self.inferer(image, network, **kwargs)


class ETTAHandler(CaseHandler):
    """Adapt the network of an evaluator to each case, and write down what came of it.

    From ITERATION_STARTED to ITERATION_COMPLETED or an exception the evaluator's inferer is an `ETTAInferer` around
    its own. `engine.state.metrics` gets, after each case, its own `etta_accepted` (1 or 0), `etta_entropy_before`,
    `etta_entropy_after` and `etta_seconds`, and after the epoch their means over the cases of all ranks. Rank 0
    rewrites `etta.csv` after each of its cases and adds those of the other ranks at the end.

    Args:
        settings: see `ETTASettings`; its defaults where None.
        output_dir: folder of `etta.csv`; None for no table.
    """

    def __init__(self, settings: ETTASettings | None = None, *, output_dir: str | Path | None = None) -> None:
        super().__init__()
        self.settings = settings or ETTASettings()
        self.path = None if output_dir is None else Path(output_dir) / "etta.csv"
        self._inferer: ETTAInferer | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._abort)
        super().attach(engine)

    def _check(self, engine: Engine) -> None:
        """Refuse a network that cannot adapt before the first case."""
        if self.settings.steps:
            affine_parameters(engine.network)

    def _begin(self, engine: Engine) -> None:
        """Put the adapting inferer in the place of the evaluator's own."""
        if not isinstance(engine.inferer, ETTAInferer):
            self._inferer = engine.inferer = ETTAInferer(engine.inferer, self.settings)
        if is_cuda(engine.state.device):
            torch.cuda.reset_peak_memory_stats(engine.state.device)

    def _end(self, engine: Engine) -> list[Outcome]:
        """Put the evaluator's own inferer back and return what became of the cases."""
        adapting, self._inferer = self._inferer, None
        if adapting is None:
            return []
        engine.inferer = adapting.inferer
        return adapting.outcomes

    def __call__(self, engine: Engine) -> None:
        """Note the cases of one iteration; a failed one has no row."""
        outcomes = self._end(engine)
        for (item, _), outcome in zip(decollated(engine), outcomes, strict=False):
            case = case_name(item)
            row = {**asdict(outcome), "peak_memory_mb": peak_memory_mb(engine.state.device)}
            remember(self._cases, case, source=source_path(item), value=row)
            logger.info(
                "%s: %s (%s), entropy %.4f -> %.4f, %.1f s",
                case,
                "adapted" if outcome.accepted else "plain",
                outcome.reason,
                outcome.entropy_before,
                outcome.entropy_after,
                outcome.seconds,
            )
            engine.state.metrics.update({f"etta_{name}": float(row[name]) for name in MEANS})
            if is_rank0():
                self._write(self._cases)

    def _abort(self, engine: Engine, error: BaseException) -> None:
        """Put the evaluator's own inferer back and let the error pass."""
        self._end(engine)
        raise error

    def _finish(self, engine: Engine) -> None:
        """Add the cases of the other ranks and set the means."""
        cases = gather_cases(self._cases)
        if is_rank0():
            self._write(cases)
        if cases:
            table = pd.DataFrame([row for _, row in cases.values()])
            engine.state.metrics.update({f"etta_{name}": float(table[name].mean()) for name in MEANS})

    def _write(self, cases: Collected) -> None:
        """Write the whole table under a temporary name, then rename it."""
        if self.path is None:
            return
        rows = [{"case": case, **row} for case, (_, row) in sorted(cases.items())]
        write_table(pd.DataFrame(rows, columns=COLUMNS), self.path)


def is_cuda(device: torch.device | None) -> bool:
    """Tell whether an evaluator runs on a GPU, which it need not do on a machine that has one."""
    return device is not None and torch.device(device).type == "cuda"


def peak_memory_mb(device: torch.device | None) -> float:
    """Return the peak memory of a case on a GPU since it began, or of the process so far on the CPU, in MB."""
    if is_cuda(device):
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
