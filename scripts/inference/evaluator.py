"""Segment many cases; a failing case does not stop the run."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from scripts.common import failures
from scripts.common.errors import bug_traceback, log_failure, reason
from scripts.common.files import require_writable

logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """A dataset that gives the reason in place of a case that it cannot load, for `CaseEvaluator`."""

    def __getitem__(self, index: int) -> dict[Hashable, Any]:
        """Return the transformed case, or `{"case", "error", "traceback"}`; an `InputError` has no traceback."""
        try:
            return super().__getitem__(index)
        except Exception as error:
            return {"case": self.data[index]["case"], "error": reason(error), "traceback": bug_traceback(error)}


class CaseEvaluator(SupervisedEvaluator):
    """`SupervisedEvaluator` that continues after a failed case and records why it failed.

    Postprocessing and handlers of `IterationEvents.MODEL_COMPLETED` belong to the case: what they raise fails that
    case alone. A failed case leaves empty lists as the engine's batch and output. The traceback of a bug is logged.

    It overrides `_iteration`, which MONAI's engines implement: in MONAI 1.6.1 nothing public wraps an iteration, and
    `iteration_update` replaces it.

    Args:
        output_dir: folder of the results, checked at once. Gets `failed.csv` if a case failed.
        options: as `monai.engines.SupervisedEvaluator`; `val_data_loader` loads a `CaseDataset` one case at a time.

    Raises:
        InputError: `output_dir` cannot be written.
    """

    def __init__(self, *, output_dir: str | Path, **options: Any) -> None:
        self.output_dir = require_writable(output_dir)
        self.failures: dict[str, str] = {}
        super().__init__(**options)

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Any]) -> Any:
        case = batchdata["case"][0]
        if "error" in batchdata:
            why, trace = batchdata["error"][0], batchdata["traceback"][0]
            logger.error("case %s failed: %s%s", case, why, f"\n{trace.rstrip()}" if trace else "")
            return self._fail(case, why)
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            log_failure(logger, case, error)
            return self._fail(case, reason(error))

    def _fail(self, case: str, why: str) -> list[Any]:
        """Record a failed case and leave nothing of it to the handlers."""
        self.failures[case] = why
        self.state.batch = []
        return []

    def run(self) -> None:
        """Segment all cases and write `failed.csv`, or remove that of an earlier run."""
        super().run()
        failures.write_failures(self.output_dir, self.failures)
        finished = self.state.epoch_length - len(self.failures)
        logger.info("finished %d of %d cases, results in %s", finished, self.state.epoch_length, self.output_dir)

    def exit_if_failed(self) -> None:
        """End the program with exit code 1 and the reasons if cases failed.

        Raises:
            SystemExit: at least one case failed.
        """
        failures.exit_if_failed(self.failures, self.state.epoch_length)
