"""The base of fitting and cleaning: measures every label map of a cohort once and reads the results as tables."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from monai.data import Dataset

from scripts.cohort.journal import Case, Journal
from scripts.cohort.run import run_cohort
from scripts.common import failures
from scripts.common.errors import InputError
from scripts.common.files import atomic_path, require_writable, write_table
from scripts.common.fingerprint import fingerprint
from scripts.common.flags import parse_flag
from scripts.common.locks import FolderLock
from scripts.solf.covariates import Covariates
from scripts.solf.features import compile_features
from scripts.solf.filter import LabelFilter
from scripts.solf.renaming import Sources
from scripts.solf.report.drift import measure_drift
from scripts.solf.report.folder import check_report, remove_unfinished
from scripts.solf.report.review import ReviewOptions
from scripts.solf.report.write import write_report
from scripts.solf.tables import cohort_table, unpack_features, unpack_sources
from scripts.solf.thresholds import judge, readable
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
        review: Mapping[str, Any] | None = None,
        covariates: Covariates | None = None,
        scheduler: str = "",
        workers: int = -1,
    ) -> None:
        self.network, self.output_dir, self.qc = network, require_writable(output_dir), parse_flag(qc, "qc")
        for name in RESULTS:
            refuse_folder(self.output_dir / name)
        self.cases = sorted(dataset.data, key=lambda case: case["case"])
        if self.qc:
            check_report(self.output_dir / "qc")
            names = {"organs": network.organs.values(), "cases": [case["case"] for case in self.cases]}
            self.review = ReviewOptions(**names, **(review or {}))
        self.transform = dataset.transform
        self.scheduler, self.workers = scheduler, workers
        self.failures: dict[str, str] = {}
        self.verdicts: pd.DataFrame | None = None
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
        if len(self.failures) == len(self.cases):
            first = next(iter(self.failures.values()), "the dataset is empty")
            raise InputError(f"none of {len(self.cases)} label maps could be measured: {first}")

    def tables(self) -> Iterator[pd.DataFrame]:
        """Yield the features of several hundred cases at a time, in order of name."""
        done = [case for case in self.cases if case["case"] not in self.failures]
        self._sources = Sources(self.transform.flatten().transforms[0].renaming)
        for start in range(0, len(done), _CASES_PER_TABLE):
            payloads = list(self._journal.payloads(done[start : start + _CASES_PER_TABLE]))
            for _, payload in payloads:
                self._sources.add(unpack_sources(payload))
            yield self.table_of(payloads)

    def table_of(self, payloads: Iterable[tuple[str, bytes]]) -> pd.DataFrame:
        """Turn the results of named cases into one table."""
        return cohort_table([(case, unpack_features(payload)) for case, payload in payloads], self.network.organs)

    def write_decisions(self) -> Counter[str]:
        """Write the decision about every label to `decisions.parquet`, and return the count of each decision.

        Decisions are derived here alone; the CSV and the report read this file.
        """
        thresholds, counts = self.network.thresholds, Counter()
        rows = None if self.covariates is None else self.covariates.rows

        def decided() -> Iterator[pd.DataFrame]:
            for table in self.tables():
                decisions = self.network.with_drops(with_verdicts(judge(table, thresholds, rows), self.verdicts))
                counts.update(decisions["decision"])
                yield decisions

        write_parquet(decided(), self._decisions_file)
        return counts

    def decisions(self) -> Iterator[pd.DataFrame]:
        """Read the table of `write_decisions`, several hundred cases at a time."""
        with pq.ParquetFile(self._decisions_file) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group).to_pandas()

    def _write_csv(self) -> None:
        """Write the table of `write_decisions` as CSV."""
        with atomic_path(self.output_dir / "decisions.csv") as temporary, temporary.open("w", newline="") as file:
            for n, table in enumerate(self.decisions()):
                table.to_csv(file, index=False, header=n == 0, float_format="%.6g", lineterminator="\n")

    def report(self, **about: Any) -> None:
        """Write the QC report of the table of `write_decisions`, `qc/index.html`, and `drift.csv` if sites differ.

        Args:
            about: the rule and its options, for the thresholds that the report shows.
        """
        path = self.output_dir / "drift.csv"
        drift = measure_drift(self.decisions(), self.network.thresholds, self.covariates)
        path.unlink(missing_ok=True)  # of an earlier run
        if drift is not None:
            write_table(drift, path)
        write_report(
            self.output_dir,
            decisions=self.decisions(),
            thresholds=readable(self.network.thresholds, **about),
            sources={case["case"]: case["image"] for case in self.cases},
            load=partial(_load, self.transform.flatten().transforms[0]),
            review=self.review,
            failures=self.failures,
            drift=drift,
        )

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


def _load(reader: Callable[..., Any], path: str) -> Any:
    """Read a label map with the first transform."""
    return reader({"image": path})["image"]


def write_parquet(tables: Iterable[pd.DataFrame], path: Path) -> None:
    """Write tables with the same columns as one Parquet file, a row group each, whole or not at all.

    Args:
        tables: at least one, none of them empty; only one is in memory at a time.
        path: the file.
    """
    with atomic_path(path) as temporary, ExitStack() as stack:
        writer = None
        for table in tables:
            rows = pa.Table.from_pandas(table, preserve_index=False)
            writer = writer or stack.enter_context(pq.ParquetWriter(temporary, rows.schema))
            writer.write_table(rows, row_group_size=len(rows))
