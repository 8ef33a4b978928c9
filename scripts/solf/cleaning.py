"""Cleaning the label maps of a cohort with a fitted filter."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset

from scripts.cohort.journal import Case
from scripts.files import atomic_path, remove_leftovers
from scripts.settings import flag
from scripts.solf.filter import LabelFilter
from scripts.solf.tables import packed
from scripts.solf.workflow import CohortWorkflow
from scripts.weights import load_weights

logger = logging.getLogger(__name__)

_MANY = 0.25  # of the labels; a filter that fits rejects a few in a hundred

Transform = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class CohortCleaner(CohortWorkflow):
    """Clean every label map of a cohort, on all cores or a cluster.

    Does what the bundle's evaluator does with the same parts, and writes `decisions.csv` (a row per case and label),
    `failed.csv` if cases failed and, if wanted, the QC report.

    Args:
        network: the label filter; its weights are loaded here.
        dataset: cases and the transforms that end in `scripts.solf.transforms.ShapeFeaturesd`.
        postprocessing: writes `pred`.
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
        super().__init__(network=network, cases=dataset.data, **options)
        self.transform, self.postprocessing = dataset.transform, postprocessing
        self.ckpt_path, self.qc = Path(ckpt_path), flag(qc, "qc")

    def run(self) -> None:
        """Clean and write.

        Raises:
            ValueError: the weights are not those of a fitted filter with this label table, or no case was cleaned.
        """
        load_weights(self.network, self.ckpt_path)
        remove_leftovers(self.output_dir)
        task = partial(
            clean, transform=self.transform, network=_light(self.network), postprocessing=self.postprocessing
        )
        self.measure(task, is_finished=self._is_written)
        counts = self._write_decisions()
        summary = ", ".join(f"{count} {decision}" for decision, count in sorted(counts.items()))
        logger.info("labels: %s; %s", summary, self.output_dir / "decisions.csv")
        if counts["reject"] > _MANY * counts.total():
            share = 100 * counts["reject"] / counts.total()
            question = "were the thresholds fitted on maps of the same labels and field of view?"
            logger.warning("%.0f %% of all labels were rejected: %s", share, question)
        if self.qc:
            self.report(rule="that of the weights", subjects=int(self.network.subjects.max()))

    def _is_written(self, case: Case) -> bool:
        """Tell whether a case's cleaned map is still there; a dropped one has none."""
        return self.network.rejected == "drop_case" or (self.output_dir / f"{case['case']}_cleaned.nii.gz").is_file()

    def _write_decisions(self) -> Counter[str]:
        """Write the table, and return how many labels were kept, rejected and dropped."""
        counts: Counter[str] = Counter()
        with atomic_path(self.output_dir / "decisions.csv") as temporary, temporary.open("w", newline="") as file:
            for n, table in enumerate(self.decisions()):
                table.to_csv(file, index=False, header=n == 0, float_format="%.6g", lineterminator="\n")
                counts.update(table["decision"])
        return counts


def _light(network: LabelFilter) -> LabelFilter:
    """Return the filter without the cohort's quantiles: they tell percentiles alone, and would go with every case."""
    light = copy.deepcopy(network)
    light.quantiles = torch.full_like(network.quantiles[:1], torch.nan)
    return light


def clean(case: Case, *, transform: Transform, network: LabelFilter, postprocessing: Transform) -> bytes:
    """Clean one label map and return its packed features."""
    item = transform(case)
    with torch.inference_mode():
        pred = network(item["image"][None], item["features"][None])[0]
    postprocessing({**item, "pred": pred})
    return packed(item["features"].numpy())
