"""How long the bone surface is that was segmented, and how deep it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from scripts.inference.case_handler import case_name, decollated, label_array, source_path
from scripts.inference.table_handler import TableHandler
from scripts.ultrabones.frames import frames_of, pixel_size_mm

COLUMNS = ("frames", "bone_share", "length_mm", "depth_mm")


class BoneTable(TableHandler):
    """Write `bones.csv`: a row per case.

    Columns: `case`, `frames`, `bone_share` (of the frames, those in which bone was found), `length_mm` and `depth_mm`,
    means over these frames (see `surface_size`); empty where the size of a pixel is not known.

    Args:
        output_dir: folder of the table.
        pixel_mm: height and width of a pixel; None takes those of the file, which pictures do not tell.
        pred_key: key of the predicted label map in the engine's output.

    Raises:
        InputError: when the run starts, if the table of earlier runs is damaged or has other columns.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case

    def __init__(
        self, output_dir: str | Path, *, pixel_mm: Sequence[float] | None = None, pred_key: str = "pred"
    ) -> None:
        super().__init__(Path(output_dir) / "bones.csv", COLUMNS, decimals=3)
        self.pixel_mm, self.pred_key = pixel_mm, pred_key

    def __call__(self, engine: Engine) -> None:
        """Measure the cases of one iteration and rewrite the table."""
        for batch_item, output_item in decollated(engine):
            case, source = case_name(batch_item), source_path(batch_item)
            pred = label_array(output_item, self.pred_key, case=case)
            size_mm = pixel_size_mm(pred, self.pixel_mm, source=source)
            frames = frames_of(pred)
            sizes = [surface_size(frame, size_mm or (math.nan, math.nan)) for frame in frames if frame.any()]
            means = np.mean(sizes, axis=0).tolist() if sizes else [math.nan, math.nan]
            values = (len(frames), len(sizes) / len(frames), *means)
            self.add(case, dict(zip(COLUMNS, values, strict=True)), source=source)


def surface_size(mask: np.ndarray, pixel_mm: Sequence[float]) -> tuple[float, float]:
    """Return the length of a bone surface and its mean depth below the upper edge of the image, in mm.

    In each column that shows bone, the surface is at the mean row of the mask. Neighbouring columns are joined by
    straight lines, gaps are not.

    Args:
        mask: of bone, (H, W), not empty.
        pixel_mm: height and width of a pixel.

    >>> surface_size(np.eye(4) > 0, (3, 4))
    (15.0, 6.0)
    """
    rows = np.arange(len(mask)) + 0.5
    counts = mask.astype(bool).sum(0)
    columns = np.flatnonzero(counts)
    depth_mm = (rows @ mask.astype(bool))[columns] / counts[columns] * pixel_mm[0]
    joined = np.diff(columns) == 1
    length_mm = np.hypot(np.diff(depth_mm)[joined], pixel_mm[1]).sum()
    return float(length_mm), float(depth_mm.mean())
