"""Scores of each case on its own grid, as tables and as metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.common.errors import InputError
from scripts.common.files import require_writable
from scripts.common.flags import parse_flag
from scripts.common.grids import check_same_grid
from scripts.inference.case_handler import grid_array, label_array, source_path
from scripts.io.pictures import read_image
from scripts.scoring.handlers import ScoreHandler
from scripts.ultrabones.frames import frames_of, pixel_size_mm
from scripts.ultrabones.metrics import SCORE_COLUMNS, summarise, surface_scores
from scripts.ultrabones.transforms import scale

logger = logging.getLogger(__name__)
_SCORES = ("precision", "recall", "f1")


class BoneScores(ScoreHandler):
    """Score the frames of each case; `scripts.ultrabones.metrics.surface_scores` defines the scores.

    `scores.csv` has a row per case, frame, group and tolerance, `summary.csv` one per group and tolerance. The metrics
    `f1_at_1mm`, `precision_at_1mm` and `recall_at_1mm` are those of all pixels.

    Args:
        output_dir: folder of the tables.
        pixel_mm: height and width of a pixel; None takes those of the file.
        white: intensity of white, to tell visible from invisible pixels.
        official: leave out frames as the published evaluation, and log how many; also "true" or "false".
        pred_key: key of the predicted label map in the engine's output.
        label_key: key of the label in the engine's output.

    Raises:
        InputError: while it scores: a picture, and no size of a pixel.
    """

    columns = ("frame", *SCORE_COLUMNS)
    metrics = ("precision_at_1mm", "recall_at_1mm", "f1_at_1mm")

    def __init__(
        self,
        output_dir: str | Path,
        *,
        pixel_mm: Sequence[float] | None = None,
        white: float = 255.0,
        official: bool | str = False,
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        super().__init__(require_writable(output_dir), pred_key=pred_key, label_key=label_key)
        self.pixel_mm, self.white, self.official = pixel_mm, white, parse_flag(official, "official")
        self._left_out = 0

    def _reset(self) -> None:
        super()._reset()
        self._left_out = 0

    def _rows(self, item: Mapping[str, Any], case: str) -> list[dict[str, Any]]:
        """Score one decollated case."""
        pred, label = (label_array(item, key, case=case) for key in (self.pred_key, self.label_key))
        check_same_grid(pred, label, case=case)
        source = source_path(item)
        size_mm = pixel_size_mm(label, self.pixel_mm, source=source)
        if size_mm is None:
            raise InputError(f"{case}: pictures do not tell the size of a pixel; set pixel_mm.")
        image = grid_array(scale(read_image(source), self.white), name=case)
        frames = zip(*(frames_of(volume) for volume in (pred, label, image)), strict=True)
        rows = []
        for number, (found, bone, frame) in enumerate(frames):
            scores = surface_scores(found, bone, spacing_mm=size_mm, image=frame, official=self.official)
            self._left_out += not scores
            rows += [{"frame": number, **row} for row in scores]
        return rows

    def summarise(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Summarise by group and tolerance."""
        if self._left_out:
            logger.warning("left out %d frames without bone in label or prediction, as published", self._left_out)
        return summarise(scores)

    def means(self, summary: pd.DataFrame) -> dict[str, float]:
        """Return the metrics."""
        row = summary[(summary["group"] == "all") & (summary["tolerance_mm"] == 1.0)]
        return {f"{name}_at_1mm": float(row[name].iloc[0]) if len(row) else float("nan") for name in _SCORES}
