"""Scores of each case in native space, as tables and as metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ignite.engine import Engine
from monai.data.utils import affine_to_spacing
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.common.files import write_table
from scripts.common.grids import check_same_grid
from scripts.common.organs import foreground_classes
from scripts.common.ranks import is_rank0
from scripts.inference.case_handler import (
    CaseHandler,
    case_name,
    decollated,
    gather_cases,
    label_array,
    record_case,
    source_path,
)
from scripts.scoring.metrics import SCORE_COLUMNS, check_tolerance, organ_scores, summarise

logger = logging.getLogger(__name__)


class ScoreHandler(CaseHandler):
    """Base of handlers that score predictions against labels in native space.

    After each epoch rank 0 writes `scores.csv` (rows of each case) and `summary.csv` (a row per organ or region
    and their mean), and on all ranks `engine.state.metrics` gets those means that `metrics` names.

    Args:
        output_dir: folder of the tables.
        pred_key: key of the predicted label map in the engine's output.
        label_key: key of the reference label map in the engine's output.

    Shape:
        Both label maps: (1, X, Y, Z) MetaTensors on the same grid.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case
    columns: tuple[str, ...]
    metrics: tuple[str, ...]

    def __init__(self, output_dir: str | Path, *, pred_key: str = "pred", label_key: str = "label") -> None:
        super().__init__()
        self.output_dir = Path(output_dir)
        self.pred_key, self.label_key = pred_key, label_key

    def score(self, pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
        """Score one case, two label maps (X, Y, Z), as rows with the keys `columns`."""
        raise NotImplementedError

    def summarise(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Summarise the rows of all cases; the last row holds the means."""
        raise NotImplementedError

    def __call__(self, engine: Engine) -> None:
        """Score the cases of one iteration; warn about a prediction without foreground.

        Raises:
            InputError: prediction or label is missing, not a label map, on another grid or holds other classes.
        """
        for batch_item, output_item in decollated(engine):
            case = case_name(batch_item)
            try:
                rows = self._rows(output_item, case)
                record_case(self._cases, case, source=source_path(batch_item), value=rows)
            except InputError as error:
                raise InputError(f"segmented, but not scored: {error}") from error

    def _rows(self, item: Mapping[str, Any], case: str) -> list[dict[str, Any]]:
        """Score one decollated case."""
        pred = label_array(item, self.pred_key, case=case)
        label = label_array(item, self.label_key, case=case)
        check_same_grid(pred, label, case=case)
        if not pred.array.any():
            logger.warning("%s: the prediction is all background", case)
        try:
            return self.score(pred.array, label.array, spacing_mm=affine_to_spacing(label.affine).tolist())
        except InputError as error:
            raise InputError(f"{case}: {error}") from error

    def _finish(self, engine: Engine) -> None:
        """Gather the scores of all ranks, write them and set the metrics."""
        cases = gather_cases(self._cases)
        rows = [{"case": case, **row} for case, (_, rows) in cases.items() for row in rows]
        scores = pd.DataFrame(rows, columns=["case", *self.columns])
        summary = self.summarise(scores)
        if is_rank0():
            write_table(scores, self.output_dir / "scores.csv")
            write_table(summary, self.output_dir / "summary.csv")
            table = summary.to_string(index=False, float_format="{:.3f}".format)
            count = "1 case" if len(cases) == 1 else f"{len(cases)} cases"
            logger.info("scored %s, wrote tables to %s\n%s", count, self.output_dir, table)
        engine.state.metrics.update(self.means(summary))

    def means(self, summary: pd.DataFrame) -> dict[str, float]:
        """Return the metrics of a summary, whose last row holds them."""
        return {name: float(summary.iloc[-1][name]) for name in self.metrics}


class OrganScores(ScoreHandler):
    """Score each organ; `scripts.scoring.metrics.organ_scores` defines the scores.

    The metrics mean_dice, mean_hd95_mm, mean_asd_mm and mean_surface_dice are means over organs of the means over
    cases.

    Args:
        output_dir: folder of the tables.
        class_names: class id to organ, such as the metadata's `channel_def`; the background 0 is left out.
        tolerance_mm: deviation in mm that the surface Dice accepts.
        pred_key: key of the predicted label map in the engine's output.
        label_key: key of the reference label map in the engine's output.

    Raises:
        InputError: the tolerance is negative or not a number.
    """

    columns = SCORE_COLUMNS
    metrics = ("mean_dice", "mean_hd95_mm", "mean_asd_mm", "mean_surface_dice")

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Mapping[int, str],
        *,
        tolerance_mm: float = 2.0,
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        super().__init__(output_dir, pred_key=pred_key, label_key=label_key)
        self.class_names = foreground_classes(class_names)
        check_tolerance(tolerance_mm)
        self.tolerance_mm = tolerance_mm

    def score(self, pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
        """Score the organs of one case."""
        return organ_scores(
            pred, label, spacing_mm=spacing_mm, class_names=self.class_names, tolerance_mm=self.tolerance_mm
        )

    def summarise(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Summarise per organ."""
        return summarise(scores)
