"""The base of fitting and cleaning: measures every label map of a cohort once and reads the results as tables."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from monai.data import Dataset

from scripts.cohort.journal import Case, Journal
from scripts.cohort.run import run_cohort
from scripts.common import failures
from scripts.common.errors import InputError
from scripts.common.files import atomic_path, require_writable, write_table
from scripts.common.fingerprint import fingerprint
from scripts.common.flags import parse_flag
from scripts.common.locks import FolderLock
from scripts.common.small_counts import check_folder
from scripts.solf.aggregate import FILES, write_aggregate
from scripts.solf.contacts import partners, with_unusual_contacts
from scripts.solf.covariates import Covariates
from scripts.solf.dictionary import columns_of
from scripts.solf.features import compile_features
from scripts.solf.filter import LabelFilter
from scripts.solf.fixing import FixLabelsd, changes_of, with_kinds
from scripts.solf.parquet import read_parts, write_parquet
from scripts.solf.renaming import Sources
from scripts.solf.report.drift import measure_drift
from scripts.solf.report.folder import check_report, remove_unfinished
from scripts.solf.report.review import ReviewOptions
from scripts.solf.report.write import write_report
from scripts.solf.tables import cohort_table, unpack
from scripts.solf.thresholds import judge, readable
from scripts.solf.transforms import LoadLabelMapd
from scripts.solf.verdicts import with_verdicts

logger = logging.getLogger(__name__)

RESULTS = ("journal.sqlite", "features.parquet", "thresholds.json", "decisions.parquet", "decisions.csv", "failed.csv")
RESULTS += ("label_names.csv", "drift.csv")
_CASES_PER_TABLE = 500  # about 35,000 labels


class CohortWorkflow:
    """Base of workflows that measure every label map of a cohort; a killed run can be resumed.

    Args:
        network: the label filter.
        dataset: cases, `{"image": path, "case": unique name}`, and a `Compose` that reads and measures a label map; its
            first transform reads it.
        output_dir: folder of the results and of `journal.sqlite`, the finished cases; checked at once.
        qc: whether to write the report `qc/index.html`; what it needs is checked at once.
        aggregate_only: whether to write `aggregate/` of `scripts.solf.aggregate` in place of decisions and report.
        review: options of `scripts.solf.report.review.ReviewOptions`, checked at once if `qc` is true.
        covariates: of the cohort, see `scripts.solf.covariates.read_covariates`; None for none.
        scheduler: address of a Dask scheduler; "" for processes on this machine.
        workers: processes on this machine; -1 for one per core, 0 to run in this process.

    Raises:
        InputError: `output_dir` cannot be written, holds a folder with the name of a result, or a `qc` that is not a
            report.
    """

    def __init__(
        self,
        *,
        network: LabelFilter,
        dataset: Dataset,
        output_dir: str | Path,
        qc: bool | str,
        aggregate_only: bool | str = False,
        review: Mapping[str, Any] | None = None,
        covariates: Covariates | None = None,
        scheduler: str = "",
        workers: int = -1,
    ) -> None:
        self.network, self.output_dir = network, require_writable(output_dir)
        self.aggregate_only = parse_flag(aggregate_only, "aggregate_only")
        self.qc = parse_flag(qc, "qc") and not self.aggregate_only
        for name in RESULTS:
            refuse_folder(self.output_dir / name)
        self.cases = sorted(dataset.data, key=lambda case: case["case"])
        if self.aggregate_only:
            check_folder(self._aggregate, FILES)
        if self.qc:
            check_report(self.output_dir / "qc")
            names = {"organs": network.organs.values(), "cases": [case["case"] for case in self.cases]}
            self.review = ReviewOptions(**names, **(review or {}))
        self.transform = dataset.transform
        self.scheduler, self.workers = scheduler, workers
        self.failures: dict[str, str] = {}
        self.verdicts: pd.DataFrame | None = None
        self.changes: dict[tuple[str, int], tuple[str, int]] = {}
        self.covariates = covariates
        self.folders: dict[Path, str] = {self.output_dir: "output_dir"}
        self._journal: Journal | None = None

    def run(self) -> None:
        """Process the cohort, alone in the folders that are written.

        Raises:
            InputError: another run uses one of the folders; see also `process`.
        """
        distinct = {folder.resolve(): (folder, setting) for folder, setting in self.folders.items()}
        with ExitStack() as self._opened:
            locks = [FolderLock(folder, setting=setting) for folder, setting in distinct.values()]
            self._locks = [self._opened.enter_context(lock) for lock in locks]
            remove_unfinished(self.output_dir)
            self.process()
            self._sources.write(self.output_dir)
        if not self.qc and (self.output_dir / "qc").is_dir():
            logger.warning(
                "%s: is the report of an earlier run; set qc to true to write it anew", self.output_dir / "qc"
            )

    def process(self) -> None:
        """Measure and write."""
        raise NotImplementedError

    def exit_if_failed(self) -> None:
        """End the program with exit code 1 and the reasons if cases failed.

        Raises:
            SystemExit: at least one case failed.
        """
        failures.exit_if_failed(self.failures, len(self.cases))

    def measure(
        self,
        task: Callable[[Case], bytes],
        *,
        depends_on: Sequence[Any] = (),
        is_finished: Callable[[Case], bool] | None = None,
    ) -> None:
        """Run `task` on every case that is not finished, and write `failed.csv` of those that raise.

        Args:
            task: takes a case and returns its packed features, see `scripts.solf.tables`; runs in other processes.
            depends_on: what the result depends on besides the transforms. If one of them or its code changes, all cases
                are processed again.
            is_finished: returns whether the files that the task wrote for a case of the journal still exist.

        Raises:
            InputError: no case could be measured, or a folder was removed meanwhile.
        """
        settings = f"{type(self).__name__} {fingerprint(self.transform.flatten().transforms, depends_on)}"
        self._journal = self._opened.enter_context(Journal(self.output_dir / "journal.sqlite", settings=settings))
        self.failures = run_cohort(
            task,
            self.cases,
            journal=self._journal,
            scheduler=self.scheduler,
            workers=self.workers,
            is_finished=is_finished,
            warm_up=compile_features,
        )
        for lock in self._locks:
            lock.check()
        failures.write_failures(self.output_dir, self.failures)
        self.changes = self._changes()
        if len(self.failures) == len(self.cases):
            first = next(iter(self.failures.values()), "the dataset is empty")
            raise InputError(f"none of {len(self.cases)} label maps could be measured: {first}")

    def _changes(self) -> dict[tuple[str, int], tuple[str, int]]:
        """Return what `scripts.solf.fixing.changes_of` gives, by case and label, and log how many were changed."""
        fixed = [case for case in self.cases if case.get("fixed") and case["case"] not in self.failures]
        texts = {name: unpack(payload).fixed for name, payload in self._journal.payloads(fixed)}
        changes = {(name, label): change for name, text in texts.items() for label, change in changes_of(text).items()}
        if fixed:
            count = len({name for name, _ in changes})
            logger.info("fixed: %d labels of %d cases differ from the label maps", len(changes), count)
        return changes

    def tables(self) -> Iterator[pd.DataFrame]:
        """Yield the features of several hundred cases at a time, in order of name."""
        done = [case for case in self.cases if case["case"] not in self.failures]
        self._sources = Sources(self.transform.flatten().transforms[0].renaming)
        for start in range(0, len(done), _CASES_PER_TABLE):
            yield self.table_of(list(self._journal.payloads(done[start : start + _CASES_PER_TABLE])))

    def table_of(self, payloads: Sequence[tuple[str, bytes]]) -> pd.DataFrame:
        """Turn the results of named cases into one table, and count what became of the files' own labels."""
        results = [(case, unpack(payload)) for case, payload in payloads]
        table = cohort_table([(case, result.features) for case, result in results], self.network.organs)
        touched: dict[tuple[str, int], str] = {}
        for case, result in results:
            self._sources.add(result.sources)
            others_of = partners(result.contacts)
            touched |= {(case, label): " ".join(map(str, others)) for label, others in others_of.items()}
        keys = zip(table["case"], table["label"], strict=True)
        return table.assign(contacts=[touched.get(key, "") for key in keys])

    def write_decisions(self) -> Counter[str]:
        """Write the decision about every label to `decisions.parquet`, and return the count of each decision.

        Decisions are derived here alone; the CSV and the report read this file.
        """
        thresholds, counts = self.network.thresholds, Counter()
        contact_percent = self.network.contact_percent.cpu().numpy()
        rows = None if self.covariates is None else self.covariates.rows

        def decided() -> Iterator[pd.DataFrame]:
            for table in self.tables():
                decisions = self.network.with_drops(with_verdicts(judge(table, thresholds, rows), self.verdicts))
                decisions = with_unusual_contacts(decisions, table, contact_percent, self.network.organs)
                if any("fixed" in case for case in self.cases):
                    decisions = with_kinds(decisions, self.changes)
                counts.update(decisions["decision"])
                yield decisions

        write_parquet(decided(), self._decisions_file, columns=columns_of("decisions"))
        return counts

    def decisions(self) -> Iterator[pd.DataFrame]:
        """Read the table of `write_decisions`, several hundred cases at a time."""
        return read_parts(self._decisions_file)

    def _write_csv(self) -> None:
        """Write the table of `write_decisions` as CSV."""
        with atomic_path(self.output_dir / "decisions.csv") as temporary, temporary.open("w", newline="") as file:
            for n, table in enumerate(self.decisions()):
                table.to_csv(file, index=False, header=n == 0, float_format="%.6g", lineterminator="\n")

    def report(self) -> None:
        """Write the QC report of the table of `write_decisions`, `qc/index.html`, and `drift.csv` if sites differ."""
        path = self.output_dir / "drift.csv"
        drift = measure_drift(self.decisions(), self.network.thresholds, self.covariates)
        path.unlink(missing_ok=True)  # of an earlier run
        if drift is not None:
            write_table(drift, path)
        write_report(
            self.output_dir,
            decisions=self.decisions(),
            thresholds=readable(self.network.thresholds),
            sources={case["case"]: case["image"] for case in self.cases},
            load=partial(self._load, {case["image"]: case for case in self.cases}),
            review=self.review,
            failures=self.failures,
            drift=drift,
        )

    def write_aggregate(self) -> None:
        """Write `aggregate/` from the table of `write_decisions`, and remove that, also one of an earlier run."""
        try:
            write_aggregate(
                self._aggregate,
                decisions=self.decisions(),
                thresholds=self.network.thresholds,
                failed=len(self.failures),
            )
        finally:
            for path in (self._decisions_file, self.output_dir / "decisions.csv"):
                path.unlink(missing_ok=True)

    @property
    def _aggregate(self) -> Path:
        return self.output_dir / "aggregate"

    def _load(self, cases: Mapping[str, Case], path: str) -> Any:
        """Read a label map, with what was fixed."""
        item = cases[path]
        for transform in self.transform.flatten().transforms:
            if isinstance(transform, LoadLabelMapd | FixLabelsd):
                item = transform(item)
        return item["image"]

    @property
    def _decisions_file(self) -> Path:
        return self.output_dir / "decisions.parquet"


def refuse_folder(path: Path) -> None:
    """Refuse a folder where a file will be written.

    Raises:
        InputError: `path` is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, where a result will be written; move it away.")
