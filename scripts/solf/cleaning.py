"""Cleaning the label maps of a cohort with a fitted filter."""

from __future__ import annotations

import copy
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset

from scripts.cohort.journal import Case
from scripts.common.files import atomic_path, write_json
from scripts.models.weights import load_weights
from scripts.solf.filter import LabelFilter, clean_case, require_fit
from scripts.solf.measuring import Transform
from scripts.solf.thresholds import readable, summary
from scripts.solf.workflow import CohortWorkflow

logger = logging.getLogger(__name__)

_SUSPICIOUS_SHARE = 0.25  # of the labels; a filter that fits the cohort rejects a few percent


class CohortCleaner(CohortWorkflow):
    """Clean every label map of a cohort, on all cores or a cluster.

    Writes the same label maps as the bundle's evaluator, `decisions.csv` and `decisions.parquet` (a row per case and
    label), `thresholds.json`, `failed.csv` if cases failed, which then have no label map, and, if wanted, the QC
    report.

    Args:
        network: the label filter; its weights are loaded here.
        dataset: cases and the transforms that end in `scripts.solf.transforms.ShapeFeaturesd`.
        postprocessing: writes `pred` as `<case>_cleaned.nii.gz`.
        ckpt_path: file of the fitted filter.
        qc: whether to write the report.
        options: as `CohortWorkflow`.
    """

    def __init__(
        self,
        *,
        network: LabelFilter,
        dataset: Dataset,
        postprocessing: Transform,
        ckpt_path: str | Path,
        qc: bool | str = False,
        **options: Any,
    ) -> None:
        super().__init__(network=network, dataset=dataset, qc=qc, **options)
        self.postprocessing, self.ckpt_path = postprocessing, Path(ckpt_path)

    def process(self) -> None:
        """Clean and write.

        Raises:
            InputError: the weights are not those of a fitted filter with this label table, or no case was cleaned.
        """
        require_fit(self.ckpt_path)
        load_weights(self.network, self.ckpt_path)
        logger.info("%s: %s", self.ckpt_path, summary(self.network.thresholds))
        light = _without_quantiles(self.network)
        task = partial(clean_case, transform=self.transform, network=light, postprocessing=self.postprocessing)
        depends_on = [clean_case, light, type(self.postprocessing)]
        try:
            self.measure(task, depends_on=depends_on, is_finished=self._is_written)
        finally:
            for name in self.failures:
                self._cleaned(name).unlink(missing_ok=True)  # of an earlier run
        write_json(self.output_dir / "thresholds.json", readable(self.network.thresholds))
        counts = self.write_decisions()
        self._write_csv()
        numbers = ", ".join(f"{count} {decision}" for decision, count in sorted(counts.items()))
        logger.info("labels: %s; wrote %s", numbers, self.output_dir / "decisions.csv")
        if counts["reject"] > _SUSPICIOUS_SHARE * counts.total():
            share = 100 * counts["reject"] / counts.total()
            question = "were the thresholds fitted to maps of the same labels and field of view?"
            logger.warning("%.0f %% of all labels were rejected: %s", share, question)
        if self.qc:
            self.report()

    def _is_written(self, case: Case) -> bool:
        """Return whether a case's cleaned map still exists; a dropped one has none."""
        return self.network.rejected == "drop_case" or self._cleaned(case["case"]).is_file()

    def _cleaned(self, name: str) -> Path:
        return self.output_dir / f"{name}_cleaned.nii.gz"

    def _write_csv(self) -> None:
        with atomic_path(self.output_dir / "decisions.csv") as temporary, temporary.open("w", newline="") as file:
            for n, table in enumerate(self.decisions()):
                table.to_csv(file, index=False, header=n == 0, float_format="%.6g", lineterminator="\n")


def _without_quantiles(network: LabelFilter) -> LabelFilter:
    """Return the filter without the cohort's quantiles, which are large to send and only needed for percentiles."""
    light = copy.deepcopy(network)
    light.quantiles = torch.full_like(network.quantiles[:1], torch.nan)
    return light
