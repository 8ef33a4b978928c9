"""Scores of BraTS regions as a handler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scripts.brats.lesions import DEFAULT_RULES, REGION_COLUMNS, LesionRules, region_scores, summarise_regions
from scripts.common.errors import InputError
from scripts.scoring.handlers import ScoreHandler


class RegionScores(ScoreHandler):
    """Score overlapping tumour regions, each as a whole and lesion by lesion, by the rules of BraTS 2023.

    `scripts.brats.lesions.region_scores` defines the scores, also those of empty regions. The metrics mean_dice,
    mean_hd95_mm, mean_lesion_dice and mean_lesion_hd95_mm are means over regions of the means over cases.

    Args:
        output_dir: folder of the tables.
        regions: region to the class ids of the label maps that make it up, such as `{"TC": [1, 3]}`; label maps may
            hold these classes only.
        rules: which lesions count; by default those of the challenge's adult glioma.
        pred_key: key of the predicted label map in the engine's output.
        label_key: key of the reference label map in the engine's output.

    Raises:
        InputError: there is no region, or a region has no classes or holds the background.
    """

    columns = REGION_COLUMNS
    metrics = ("mean_dice", "mean_hd95_mm", "mean_lesion_dice", "mean_lesion_hd95_mm")

    def __init__(
        self,
        output_dir: str | Path,
        regions: Mapping[str, Sequence[int]],
        *,
        rules: LesionRules = DEFAULT_RULES,
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        super().__init__(output_dir, pred_key=pred_key, label_key=label_key)
        if not regions or any(not members or min(members) < 1 for members in regions.values()):
            raise InputError(f"regions is {dict(regions)}: give each region its class ids, 1 or more.")
        self.regions = {region: [int(class_id) for class_id in members] for region, members in regions.items()}
        self.rules = rules

    def score(self, pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
        """Score the regions of one case."""
        return region_scores(pred, label, spacing_mm=spacing_mm, regions=self.regions, rules=self.rules)

    def summarise(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Summarise per region."""
        return summarise_regions(scores)
