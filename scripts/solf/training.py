"""Fitting the label filter to a cohort of label maps."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import torch
from monai.data import Dataset

from scripts.common.errors import InputError
from scripts.common.files import require_writable, write_json
from scripts.models.weight_files import save
from scripts.solf.contacts import fit_contacts
from scripts.solf.covariates import warn_of_unknown
from scripts.solf.dictionary import columns_of
from scripts.solf.fitting import fit_thresholds, subjects_needed
from scripts.solf.measuring import measure_case
from scripts.solf.parquet import write_parquet
from scripts.solf.thresholds import INPUTS, readable
from scripts.solf.workflow import CohortWorkflow, refuse_folder

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


class FilterTrainer(CohortWorkflow):
    """Measure a cohort and fit the label filter to it.

    Writes `features.parquet` (a row per case and label), `thresholds.json`, the weights at `ckpt_path`, `failed.csv` if
    cases could not be measured and, if wanted, the QC report with its `decisions.parquet`.

    Args:
        dataset: cases and the transforms that end in `scripts.solf.transforms.ShapeFeaturesd`.
        ckpt_path: file of the fitted filter.
        version: of the bundle, part of the weights.
        rule: options of `scripts.solf.fitting.fit_thresholds`.
        qc: whether to write the report.
        max_epochs: 1, because a cohort is measured once; MONAI requires it of trainers.
        options: as `CohortWorkflow`.

    Raises:
        InputError: an option is out of its range, there are fewer cases than the rule needs, or the folder of
            `ckpt_path` cannot be written.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        ckpt_path: str | Path,
        version: str = "",
        rule: Mapping[str, Any],
        qc: bool | str = True,
        max_epochs: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(dataset=dataset, qc=qc, **options)
        self.rule, self.version = {"rule": "percentile", **rule}, version
        needed = subjects_needed(**self.rule)
        if len(self.cases) < needed:
            raise InputError(
                f"dataset has {len(self.cases)} label maps, the rule {self.rule['rule']} needs {needed}: give more, a "
                "larger epsilon_percent, or the rule ranges, which needs none."
            )
        if self.covariates is not None and self.rule["rule"] == "ranges":
            raise InputError("the fixed ranges of the rule ranges take no covariates: choose another rule, or none.")
        if max_epochs != 1:
            raise InputError(f"max_epochs is {max_epochs}: a cohort is measured once, leave it at 1.")
        self.max_epochs, self.ckpt_path = max_epochs, Path(ckpt_path)
        refuse_folder(self.ckpt_path)
        self.folders[require_writable(self.ckpt_path.parent, setting="ckpt_dir")] = "ckpt_dir"

    def choose_rule(self, _: pd.DataFrame) -> Mapping[str, Any]:
        """Return the options of `fit_thresholds`, given the features of the cohort."""
        return self.rule

    def process(self) -> None:
        """Measure, fit and write."""
        self.measure(partial(measure_case, transform=self.transform), depends_on=[measure_case])
        features = self.output_dir / "features.parquet"
        write_parquet(self.tables(), features, columns=columns_of("features"))
        table = read_features(features)
        rule = self.choose_rule(table)
        about = {"version": self.version, "covariates": self.covariates}
        fitted = fit_thresholds(table, organs=self.network.organs, **about, **rule)
        if self.covariates is not None:
            warn_of_unknown(self.covariates, self.covariates.coding, self.cases)
        self.network.thresholds = fitted
        self.network.contact_percent.copy_(torch.from_numpy(fit_contacts(_contacts(features), self.network.organs)))
        save(self.network.state_dict(), self.ckpt_path)
        write_json(self.output_dir / "thresholds.json", readable(fitted))
        organs = int((fitted.subjects > 0).sum())
        logger.info("wrote thresholds %s of %d organs to %s", fitted.fingerprint, organs, self.ckpt_path)
        self._decisions_file.unlink(missing_ok=True)  # of earlier thresholds
        if self.qc or self.aggregate_only:
            counts = self.write_decisions()
            logger.info("%d organs are missing", counts["missing"])
        if self.aggregate_only:
            self.write_aggregate()
        if self.qc:
            self.report()


def read_features(path: str | Path) -> pd.DataFrame:
    """Read the columns of `features.parquet` that a fit needs, column by column: large cohorts fit in 2 GB."""
    import pandas as pd  # here, as programs that only name the trainer may lack it

    with pq.ParquetFile(path, read_dictionary=["case"]) as file:
        columns = {name: file.read([name]).to_pandas()[name] for name in INPUTS}
    return pd.DataFrame(columns, copy=False)


def _contacts(path: Path) -> Iterator[pd.DataFrame]:
    """Read the contacts of `features.parquet`, several hundred cases at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=["case", "label", "contacts"]).to_pandas()
