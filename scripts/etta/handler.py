"""Entropy test-time adaptation as a handler of evaluators."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from scripts.etta.core import affine_parameters
from scripts.etta.inferer import ETTAInferer
from scripts.etta.settings import ETTASettings
from scripts.inference.case_handler import case_name, decollated, source_path
from scripts.inference.table_handler import TableHandler

COLUMNS = ["accepted", "reason", "candidate", "entropy_before", "entropy_after"]
COLUMNS += ["foreground_entropy_before", "foreground_entropy_after", "seconds", "peak_memory_mb", "windows"]
MEANS = ("accepted", "entropy_before", "entropy_after", "seconds")
logger = logging.getLogger(__name__)


class ETTAHandler(TableHandler):
    """Adapt an evaluator to each case, and write the outcomes to a table.

    During an iteration, an `ETTAInferer` around the evaluator's inferer takes its place. After each case,
    `engine.state.metrics` holds its `etta_accepted` (1 or 0), `etta_entropy_before`, `etta_entropy_after` and
    `etta_seconds`; after the epoch their means over the cases of all ranks. A failed case has no row.

    Args:
        settings: see `ETTASettings`; None for its defaults. They do not apply to an evaluator whose own inferer is an
            `ETTAInferer`.
        output_dir: folder of `etta.csv`; None for no table.

    Raises:
        InputError: when the run starts, if the network has nothing to adapt, or see `TableHandler`.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case

    def __init__(self, settings: ETTASettings | None = None, *, output_dir: str | Path | None = None) -> None:
        super().__init__(None if output_dir is None else Path(output_dir) / "etta.csv", COLUMNS, decimals=6)
        self.settings = settings or ETTASettings()

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        engine.add_event_handler(Events.STARTED, self._check)
        # Not by events, as none follows each failure: of the handlers of EXCEPTION_RAISED, Ignite (0.5.5) skips those
        # after the first that raises, and all after Ctrl-C.
        engine._process_function = partial(self._iterate, engine._process_function)
        super().attach(engine)

    def _check(self, engine: Engine) -> None:
        """Refuse a network that cannot adapt before the first case."""
        if self.settings.adapts_weights:
            affine_parameters(engine.network)

    def _iterate(self, iteration: Callable[[Engine, Any], Any], engine: Engine, batch: Any) -> Any:
        """Run one iteration with an adapting inferer in place of the evaluator's own."""
        if is_cuda(engine.state.device):
            torch.cuda.reset_peak_memory_stats(engine.state.device)
        own = engine.inferer
        engine.inferer = own if isinstance(own, ETTAInferer) else ETTAInferer(own, self.settings)
        try:
            return iteration(engine, batch)
        finally:
            engine.inferer = own

    def __call__(self, engine: Engine) -> None:
        """Record the cases of one iteration."""
        for (item, _), outcome in zip(decollated(engine), engine.inferer.outcomes, strict=True):
            case = case_name(item)
            row = {**asdict(outcome), "peak_memory_mb": peak_memory_mb(engine.state.device)}
            self.add(case, row, source=source_path(item))
            logger.info(
                "%s: %s (%s), entropy %.4f -> %.4f, %.1f s",
                case,
                "adapted" if outcome.accepted else "not adapted",
                f"{outcome.candidate}: {outcome.reason}" if outcome.candidate else outcome.reason,
                outcome.entropy_before,
                outcome.entropy_after,
                outcome.seconds,
            )
            engine.state.metrics.update({f"etta_{name}": float(row[name]) for name in MEANS})

    def _finish(self, engine: Engine) -> None:
        """Add the cases of the other ranks and set the means."""
        rows = [row for _, row in super()._finish(engine).values()]
        if rows:
            values = torch.tensor([[float(row[name]) for name in MEANS] for row in rows], dtype=torch.float64)
            means = values.nanmean(dim=0).tolist()
            engine.state.metrics.update({f"etta_{name}": mean for name, mean in zip(MEANS, means, strict=True)})


def is_cuda(device: torch.device | None) -> bool:
    """Return whether an evaluator runs on a GPU; on a machine with a GPU it may still run on the CPU."""
    return device is not None and torch.device(device).type == "cuda"


def peak_memory_mb(device: torch.device | None) -> float:
    """Return the peak memory in MiB: on a GPU since the case began, on the CPU of the whole process so far.

    Returns:
        NaN on Windows, which lacks the module `resource`.
    """
    if is_cuda(device):
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
