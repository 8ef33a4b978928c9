"""Organ volumes of predictions, as a table that grows with every finished case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.common.label_maps import as_label_array, count_voxels
from scripts.common.organs import foreground_classes
from scripts.inference.case_handler import case_name, decollated, label_array, source_path
from scripts.inference.table_handler import TableHandler


def organ_volumes(
    label_map: np.ndarray | torch.Tensor, *, spacing_mm: Sequence[float], class_names: Mapping[int, str]
) -> dict[str, float]:
    """Measure each organ of a label map in one pass.

    Args:
        label_map: class ids.
        spacing_mm: voxel size in mm along each of the orthogonal axes.
        class_names: class id to organ; id 0 is left out.

    Returns:
        Organ to volume in ml, by ascending class id; 0.0 for an absent organ.

    Shape:
        label_map: (X, Y, Z).

    Raises:
        InputError: a spacing is not positive, or a voxel is not a whole number from 0.

    >>> organ_volumes(np.ones((10, 10, 10), dtype=np.uint8), spacing_mm=(1, 1, 2), class_names={1: "spleen"})
    {'spleen': 2.0}
    """
    if not np.all(np.isfinite(spacing_mm)) or min(spacing_mm) <= 0:
        raise InputError(f"spacing_mm is {tuple(spacing_mm)}: give voxel sizes above 0 mm.")
    return _volumes(label_map, voxel_mm3=float(np.prod(spacing_mm)), class_names=class_names)


def _volumes(
    label_map: np.ndarray | torch.Tensor, *, voxel_mm3: float, class_names: Mapping[int, str]
) -> dict[str, float]:
    """Count voxels and multiply them by their volume; see `organ_volumes`."""
    names = foreground_classes(class_names)
    counts = count_voxels(as_label_array(label_map, name="label_map"))
    counts = np.pad(counts, (0, max(0, max(names, default=0) + 1 - len(counts))))
    return {organ: float(counts[class_id]) * voxel_mm3 / 1000.0 for class_id, organ in names.items()}


class VolumesSaver(TableHandler):
    """Write `volumes.csv`: a row per case, a column per organ, in ml.

    Args:
        output_dir: folder of the table.
        class_names: class id to organ, such as the metadata's `channel_def`; the background 0 is left out.
        pred_key: key of the predicted label map in the engine's output.

    Shape:
        The label map: (1, X, Y, Z), a MetaTensor; its affine may be oblique or sheared.

    Raises:
        InputError: when the run starts, if the table of earlier runs is damaged or has other organs.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case

    def __init__(self, output_dir: str | Path, class_names: Mapping[int, str], *, pred_key: str = "pred") -> None:
        self.class_names = foreground_classes(class_names)
        super().__init__(Path(output_dir) / "volumes.csv", list(self.class_names.values()), decimals=3)
        self.pred_key = pred_key

    def __call__(self, engine: Engine) -> None:
        """Measure the cases of one iteration and rewrite the table.

        Raises:
            InputError: the prediction is missing or not a label map, or the table cannot be written.
        """
        for batch_item, output_item in decollated(engine):
            case = case_name(batch_item)
            pred = label_array(output_item, self.pred_key, case=case)
            voxel_mm3 = float(abs(np.linalg.det(pred.affine[:3, :3])))
            volumes = _volumes(pred.array, voxel_mm3=voxel_mm3, class_names=self.class_names)
            self.add(case, volumes, source=source_path(batch_item))
