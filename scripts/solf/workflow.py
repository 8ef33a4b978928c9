"""What fitting and cleaning share: every label map of a cohort is measured once, then read as tables."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.cohort.journal import Case, Journal
from scripts.cohort.run import run_cohort
from scripts.failures import failure_message, write_failures
from scripts.files import atomic_path, require_writable
from scripts.solf.features import compile_features
from scripts.solf.filter import LabelFilter
from scripts.solf.report.write import write_report
from scripts.solf.tables import cohort_table, unpacked
from scripts.solf.thresholds import judge, readable

logger = logging.getLogger(__name__)

_CASES_PER_TABLE = 500  # some 35,000 labels


class CohortWorkflow:
    """Base of what measures every label map of a cohort, and may be killed and started again at any moment.

    Args:
        network: the label filter.
        cases: `{"image": path, "case": unique name}` of each label map.
        output_dir: folder of the results and of `journal.sqlite`, which knows the finished cases; refused at once
            where it cannot be written.
        settings: what the result of a case depends on, such as `label_names` and the bundle's version; another value,
            or another content of a file that a value names, does all cases anew.
        scheduler: address of a Dask scheduler; "" for processes on this machine.
        workers: processes on this machine; -1 for all cores, 0 for none but this one.
    """

    def __init__(
        self,
        *,
        network: LabelFilter,
        cases: Sequence[Case],
        output_dir: str | Path,
        settings: Mapping[str, Any],
        scheduler: str = "",
        workers: int = -1,
    ) -> None:
        self.network, self.output_dir = network, require_writable(output_dir)
        self.cases = sorted(cases, key=lambda case: case["case"])
        self.settings, self.scheduler, self.workers = settings, scheduler, workers
        self.failures: dict[str, str] = {}

    def exit_if_failed(self) -> None:
        """End the program with exit code 1 and the reasons when cases failed.

        Raises:
            SystemExit: at least one case failed.
        """
        if self.failures:
            raise SystemExit(failure_message(self.failures, len(self.cases)))

    def measure(self, task: Callable[[Case], bytes], *, is_finished: Callable[[Case], bool] | None = None) -> None:
        """Run `task` on every case that is not finished, and write `failed.csv` of those that raise.

        Args:
            task: takes a case and returns the packed features of `scripts.solf.tables`; runs in other processes.
            is_finished: whether what the task wrote for a case of the journal is still there.

        Raises:
            ValueError: no case at all could be measured.
        """
        with self._journal() as journal:
            self.failures = run_cohort(
                task,
                self.cases,
                journal=journal,
                scheduler=self.scheduler,
                workers=int(self.workers),
                is_finished=is_finished,
                warm_up=compile_features,
            )
        write_failures(self.output_dir, self.failures)
        if len(self.failures) == len(self.cases):
            first = next(iter(self.failures.values()), "there are none")
            raise ValueError(f"none of {len(self.cases)} label maps could be measured; the first: {first}")

    def tables(self) -> Iterator[pd.DataFrame]:
        """Yield the features of some hundred whole cases at a time, in order of name.

        Raises:
            ValueError: a label map was changed since it was measured.
        """
        done = [case for case in self.cases if case["case"] not in self.failures]
        with self._journal() as journal:
            for start in range(0, len(done), _CASES_PER_TABLE):
                some = done[start : start + _CASES_PER_TABLE]
                found = [(case, unpacked(payload)) for case, payload in journal.payloads(some)]
                if len(found) < len(some):
                    changed = {case["case"] for case in some} - {case for case, _ in found}
                    raise ValueError(f"{min(changed)}: its label map was changed while the run went on; run again.")
                yield cohort_table(found, self.network.organs)

    def decisions(self) -> Iterator[pd.DataFrame]:
        """Yield what the filter decides about the labels of `tables`."""
        thresholds = self.network.thresholds
        for table in self.tables():
            yield self.network.with_drops(judge(table, thresholds))

    def report(self, **about: Any) -> None:
        """Write the QC report, `qc/index.html`."""
        write_report(
            self.output_dir,
            decisions=self.decisions,
            thresholds=readable(self.network.thresholds, **about),
            sources={case["case"]: case["image"] for case in self.cases},
            label_names=self.settings.get("label_names", ""),
        )

    def _journal(self) -> Journal:
        return Journal(self.output_dir / "journal.sqlite", settings=_fingerprint(self.settings))


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write readable JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _fingerprint(settings: Mapping[str, Any]) -> str:
    """Return the settings as text, with a checksum of each file that one of them names."""
    files = {name: Path(value) for name, value in settings.items() if value and isinstance(value, str | Path)}
    sums = {name: zlib.crc32(path.read_bytes()) for name, path in files.items() if path.is_file()}
    return json.dumps([{k: str(v) for k, v in settings.items()}, sums], sort_keys=True)
