"""Segment many cases; a failing case does not stop the run."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from scripts.common import failures
from scripts.common.errors import InputError, bug_traceback, log_failure, reason
from scripts.common.files import require_writable
from scripts.common.locks import FolderLock
from scripts.common.names import printable
from scripts.common.ranks import is_rank0
from scripts.inference.case_handler import gather_cases
from scripts.inference.loader import CaseLoader

_LISTED = 20
logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """A dataset that gives the reason in place of a case that it cannot load, for `CaseEvaluator`."""

    def __getitem__(self, index: int) -> dict[Hashable, Any]:
        """Return the transformed case, or `{"case", "error", "traceback"}`; an `InputError` has no traceback."""
        try:
            case = super().__getitem__(index)
            for key, value in case.items():
                if isinstance(value, torch.Tensor) and not value.numel():
                    source = printable(self.data[index].get(key, key))
                    raise InputError(f"{source}: nothing is left after preprocessing, as it shows air alone.")
            return case
        except Exception as error:
            return {"case": self.data[index]["case"], "error": reason(error), "traceback": bug_traceback(error)}


class CaseEvaluator(SupervisedEvaluator):
    """`SupervisedEvaluator` that continues after a failed case and records why it failed.

    Postprocessing and handlers of `IterationEvents.MODEL_COMPLETED` belong to the case: what they raise fails that
    case alone, and so does the death of the process that loads it. A failed case leaves empty lists as the engine's
    batch and output. The traceback of a bug is logged.

    It overrides `_iteration`, which MONAI's engines implement: in MONAI 1.6.1 nothing public wraps an iteration, and
    `iteration_update` replaces it.

    Args:
        output_dir: folder of the results, checked at once and locked while the evaluator runs. Gets `failed.csv` if a
            case failed.
        keep_earlier: whether the tables keep the rows of other cases that earlier runs wrote; false where they describe
            one set of cases, as scores do.
        options: as `monai.engines.SupervisedEvaluator`; `val_data_loader` loads a `CaseDataset` one case at a time.

    Raises:
        InputError: `output_dir` cannot be written, or the cases are not loaded one at a time.
    """

    def __init__(self, *, output_dir: str | Path, keep_earlier: bool = True, **options: Any) -> None:
        self.output_dir, self.keep_earlier = require_writable(output_dir), keep_earlier
        self.failures: dict[str, str] = {}
        self._cases: set[str] = set()
        self._lock: FolderLock | None = None
        super().__init__(**options)
        self.data_loader = CaseLoader(self.data_loader)
        self.total = len(self.data_loader.dataset)

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Any]) -> Any:
        case = batchdata["case"][0]
        self._cases.add(case)
        if "error" in batchdata:
            why, trace = batchdata["error"][0], batchdata["traceback"][0]
            logger.error("case %s failed: %s%s", case, why, f"\n{trace.rstrip()}" if trace else "")
            return self._fail(case, why)
        try:
            if self._lock:
                self._lock.check()
            return super()._iteration(engine, batchdata)
        except Exception as error:
            log_failure(logger, case, error)
            return self._fail(case, reason(error))

    def _fail(self, case: str, why: str) -> list[Any]:
        """Record a failed case and leave nothing of it to the handlers."""
        self.failures[case] = why
        self.state.batch = []
        return []

    def run(self, global_epoch: int = 1) -> None:
        """Segment all cases and write `failed.csv` of all ranks.

        Args:
            global_epoch: see `monai.engines.Evaluator.run`; clients of federated learning give it.

        Raises:
            InputError: another run is using the folder, or a table in it is not of such a run.
        """
        self.failures, self._cases = {}, set()
        with FolderLock(self.output_dir) if is_rank0() else nullcontext() as self._lock:
            earlier = failures.read_failures(self.output_dir) if self.keep_earlier and is_rank0() else {}
            self._announce_replaced()
            try:
                super().run(global_epoch)
                gathered = gather_cases({case: ("", self.failures.get(case, "")) for case in self._cases})
                self._cases, self.failures = set(gathered), {case: why for case, (_, why) in gathered.items() if why}
            finally:  # a run that is stopped keeps the reasons too
                self._write_failures(earlier)
        if is_rank0():
            finished = self.total - len(self.failures)
            logger.info("finished %d of %d cases, results in %s", finished, self.total, self.output_dir)

    def _announce_replaced(self) -> None:
        """Log which cases have a label map already."""
        known = {path.name.rpartition("_")[0] for path in self.output_dir.glob("*_*.nii.gz")}
        names = [item["case"] for item in getattr(self.data_loader.dataset, "data", []) if item.get("case") in known]
        if names and is_rank0():
            more = ", ..." if len(names) > _LISTED else ""
            shown = ", ".join(names[:_LISTED])
            logger.info("%s: replacing the results of %d cases: %s%s", self.output_dir, len(names), shown, more)

    def _write_failures(self, earlier: Mapping[str, str]) -> None:
        """Write `failed.csv`; a case that finished leaves it."""
        if is_rank0() and self._cases:  # else the run was refused
            kept = {case: why for case, why in earlier.items() if case not in self._cases}
            if kept:
                logger.info("failed.csv still lists %d cases of earlier runs", len(kept))
            try:
                failures.write_failures(self.output_dir, {**kept, **self.failures})
            except (InputError, OSError) as error:  # the reasons are logged and printed at the end
                logger.error("%s", reason(error))

    def exit_if_failed(self) -> None:
        """End the program with exit code 1 and the reasons if cases failed.

        Raises:
            SystemExit: at least one case failed.
        """
        failures.exit_if_failed(self.failures, self.total)
