"""Fitting the label filter to a cohort of label maps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from monai.data import Dataset

from scripts.checkpoints import save
from scripts.cohort.journal import Case
from scripts.files import atomic_path
from scripts.settings import flag
from scripts.solf.fitting import fit_thresholds, subjects_needed
from scripts.solf.tables import packed
from scripts.solf.thresholds import FEATURES, Thresholds, readable
from scripts.solf.workflow import CohortWorkflow, write_json

logger = logging.getLogger(__name__)


class FilterTrainer(CohortWorkflow):
    """Measure a cohort and fit the label filter to it.

    Writes `features.parquet` (a row per case and label), `thresholds.json`, the weights at `ckpt_path` and, if
    wanted, the QC report. A case that cannot be measured goes to `failed.csv`.

    Args:
        dataset: cases and the transforms that end in `scripts.solf.transforms.ShapeFeaturesd`.
        ckpt_path: file of the fitted filter.
        rule: options of `scripts.solf.fitting.fit_thresholds`.
        qc: whether to write the report.
        max_epochs: 1, as a cohort is measured once; MONAI asks trainers for it.
        options: as `CohortWorkflow`.

    Raises:
        ValueError: an option is out of its range, or there are fewer cases than the rule needs.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        ckpt_path: str | Path,
        rule: Mapping[str, Any],
        qc: bool | str = True,
        max_epochs: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(cases=dataset.data, **options)
        needed = subjects_needed(**rule)
        if len(self.cases) < needed:
            raise ValueError(
                f"{len(self.cases)} label maps, the rule {rule['rule']} needs {needed}: give more, a larger "
                "--epsilon_percent, or --rule ranges, which learns nothing."
            )
        if max_epochs != 1:
            raise ValueError(f"max_epochs is {max_epochs}: a cohort is measured once, leave it at 1.")
        self.max_epochs = max_epochs
        self.transform, self.rule = dataset.transform, dict(rule)
        self.ckpt_path, self.qc = Path(ckpt_path), flag(qc, "qc")

    def run(self) -> None:
        """Measure, fit and write."""
        self.measure(partial(features_of, transform=self.transform))
        features = self.output_dir / "features.parquet"
        _write_parquet(self.tables(), features)
        table = pd.read_parquet(features, columns=["label", *FEATURES])
        fitted: Thresholds = fit_thresholds(table, organs=self.network.organs, **self.rule)
        self.network.thresholds = fitted
        save(self.network.state_dict(), self.ckpt_path)
        about = {**self.rule, "subjects": len(self.cases) - len(self.failures)}
        write_json(readable(fitted, **about), self.output_dir / "thresholds.json")
        logger.info("thresholds of %d organs: %s", (fitted.subjects > 0).sum(), self.ckpt_path)
        if self.qc:
            self.report(**about)


def features_of(case: Case, *, transform: Callable[[Case], Mapping[str, Any]]) -> bytes:
    """Measure one case."""
    return packed(transform(case)["features"].numpy())


def _write_parquet(tables: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        writer = None
        for table in tables:
            rows = pa.Table.from_pandas(table, preserve_index=False)
            writer = writer or pq.ParquetWriter(temporary, rows.schema)
            writer.write_table(rows)
        writer.close()
