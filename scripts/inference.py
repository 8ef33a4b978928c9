"""Segmenting many cases: one bad case is reported, the others go on, the exit code tells."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from scripts.errors import reason
from scripts.failures import failure_message, write_failures
from scripts.files import require_writable

logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """A dataset whose unreadable cases come out as `{"case", "error"}` instead of ending the run."""

    def __getitem__(self, index: int) -> dict[Hashable, Any]:
        """Return the transformed case, or its name and the reason why there is none."""
        item = self.data[index]
        try:
            return self._transform(index)
        except Exception as error:
            return {"case": item["case"], "error": reason(error)}


class CaseEvaluator(SupervisedEvaluator):
    """`SupervisedEvaluator` that goes on past a failed case and remembers why it failed.

    Postprocessing and handlers on `IterationEvents.MODEL_COMPLETED` belong to the case: what they raise fails
    that case alone. A failed case leaves empty lists as the engine's batch and output.

    Args:
        output_dir: folder of the results; refused at once where it cannot be written. Gets `failed.csv` when a
            case failed.
        options: as `monai.engines.SupervisedEvaluator`.

    Raises:
        ValueError: `output_dir` cannot be written.
    """

    def __init__(self, *, output_dir: str | Path, **options: Any) -> None:
        self.output_dir = require_writable(output_dir)
        self.failures: dict[str, str] = {}
        super().__init__(**options)

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Any]) -> Any:
        case = batchdata["case"][0]
        try:
            if "error" in batchdata:
                raise ValueError(batchdata["error"][0])
            return super()._iteration(engine, batchdata)
        except Exception as error:
            self.failures[case] = reason(error)
            logger.error("case %s failed: %s", case, self.failures[case])
            engine.state.batch = []
            return []

    def run(self) -> None:
        """Segment all cases and write `failed.csv`, or remove that of an earlier run."""
        super().run()
        write_failures(self.output_dir, self.failures)

    def exit_if_failed(self) -> None:
        """End the program with exit code 1 and the reasons when cases failed.

        Raises:
            SystemExit: at least one case failed.
        """
        if self.failures:
            raise SystemExit(failure_message(self.failures, self.state.epoch_length))
