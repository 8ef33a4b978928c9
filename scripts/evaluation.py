"""Evaluation on the original images: scores of every organ of every case, as tables and as metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from ignite.engine import Engine
from monai.data.utils import affine_to_spacing

from scripts.cases import (
    CaseHandler,
    case_name,
    check_same_grid,
    decollated,
    gather_cases,
    is_rank0,
    label_array,
    remember,
    source_path,
    write_table,
)
from scripts.labels import foreground_classes
from scripts.metrics import SCORE_COLUMNS, organ_scores, summarise

logger = logging.getLogger(__name__)

METRICS = ("mean_dice", "mean_hd95_mm", "mean_asd_mm", "mean_surface_dice")


class OrganScores(CaseHandler):
    """Score the predictions of an evaluator against labels in native space.

    After each epoch rank 0 writes `scores.csv` (a row per case and organ) and `summary.csv` (a row per organ
    and their mean), and on all ranks `engine.state.metrics` gets mean_dice, mean_hd95_mm, mean_asd_mm and
    mean_surface_dice: means over organs of the means over cases. `scripts.metrics` says how they are defined.

    Args:
        output_dir: folder of the tables.
        class_names: class id to organ, such as the metadata's `channel_def`; the background 0 is left out.
        tolerance_mm: deviation in mm that the surface Dice accepts.
        pred_key: key of the predicted label map in the engine's output.
        label_key: key of the reference label map in the engine's output.

    Shape:
        Both label maps: (1, X, Y, Z) MetaTensors on the same grid.
    """

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Mapping[int, str],
        *,
        tolerance_mm: float = 2.0,
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        super().__init__()
        self.output_dir = Path(output_dir)
        self.class_names = foreground_classes(class_names)
        self.tolerance_mm = tolerance_mm
        self.pred_key, self.label_key = pred_key, label_key

    def __call__(self, engine: Engine) -> None:
        """Score the cases of one iteration.

        Raises:
            ValueError: prediction and label are missing, not label maps or not on one grid.
        """
        for batch_item, output_item in decollated(engine):
            case = case_name(batch_item)
            pred = label_array(output_item, self.pred_key, case=case)
            label = label_array(output_item, self.label_key, case=case)
            check_same_grid(pred, label, case=case)
            rows = organ_scores(
                pred.array,
                label.array,
                spacing_mm=affine_to_spacing(label.affine).tolist(),
                class_names=self.class_names,
                tolerance_mm=self.tolerance_mm,
            )
            remember(self._cases, case, source=source_path(batch_item), value=rows)

    def _finish(self, engine: Engine) -> None:
        """Bring the scores of all ranks together, write them and set the metrics."""
        cases = gather_cases(self._cases)
        rows = [{"case": case, **row} for case, (_, rows) in cases.items() for row in rows]
        scores = pd.DataFrame(rows, columns=["case", *SCORE_COLUMNS])
        summary = summarise(scores)
        if is_rank0():
            write_table(scores, self.output_dir / "scores.csv")
            write_table(summary, self.output_dir / "summary.csv")
            table = summary.to_string(index=False, float_format="{:.3f}".format)
            logger.info("%d cases scored, tables in %s\n%s", len(cases), self.output_dir, table)
        means = summary.iloc[-1]
        engine.state.metrics.update({name: float(means[name]) for name in METRICS})
