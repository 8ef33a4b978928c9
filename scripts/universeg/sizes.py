"""How large what was segmented is: areas in pictures, volumes in volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from scripts.common.grids import GridArray
from scripts.common.label_maps import count_voxels
from scripts.common.names import is_dicom
from scripts.common.organs import foreground_classes
from scripts.inference.case_handler import case_name, decollated, label_array, source_path
from scripts.inference.table_handler import LongTableHandler
from scripts.io.pictures import tells_pixel_size


class SizesSaver(LongTableHandler):
    """Write `sizes.csv`: a row per case and class with its pixels or voxels, its area and its volume.

    Columns: `case`, `class`, `pixels`, `area_mm2` (of images of one slice, if the file gives the size of a pixel, which
    pictures do not), `volume_ml` (of volumes; a sweep of a
    DICOM file is none).

    Args:
        output_dir: folder of the table.
        class_names: class id of the prediction to name; the background 0 is left out.
        pred_key: key of the predicted label map in the engine's output.

    Shape:
        The label map: (1, X, Y, Z), a MetaTensor.

    Raises:
        InputError: when the run starts, if the table of earlier runs is damaged or has other columns.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case

    def __init__(self, output_dir: str | Path, class_names: Mapping[int, str], *, pred_key: str = "pred") -> None:
        super().__init__(Path(output_dir) / "sizes.csv", ("class", "pixels", "area_mm2", "volume_ml"), decimals=3)
        self.class_names, self.pred_key = foreground_classes(class_names), pred_key

    def __call__(self, engine: Engine) -> None:
        """Measure the cases of one iteration and rewrite the table."""
        for batch_item, output_item in decollated(engine):
            case, source = case_name(batch_item), source_path(batch_item)
            pred = label_array(output_item, self.pred_key, case=case)
            is_sweep = pred.array.shape[-1] > 1 and is_dicom(Path(source))
            sizes = class_sizes(pred, is_scaled=tells_pixel_size(source) and not is_sweep)
            rows = [{"class": name, **sizes.get(i, sizes[0])} for i, name in self.class_names.items()]
            self.add(case, rows, source=source)


def class_sizes(label_map: GridArray, *, is_scaled: bool = True) -> dict[int, dict[str, float]]:
    """Measure each class of a label map; class 0 stands for a class that is absent.

    Args:
        label_map: class ids, (X, Y, Z).
        is_scaled: whether the affine tells the size of a voxel.

    >>> class_sizes(GridArray(np.ones((10, 10, 1), dtype=np.uint8), np.diag([0.5, 0.5, 3, 1])))[1]
    {'pixels': 100, 'area_mm2': 25.0, 'volume_ml': nan}
    """
    sides_mm = np.linalg.norm(label_map.affine[:3, :3], axis=0)
    flat = [axis for axis, n in enumerate(label_map.array.shape) if n == 1]
    area_mm2 = float(np.prod(np.delete(sides_mm, flat[-1]))) if flat and is_scaled else math.nan
    volume_ml = math.nan if flat or not is_scaled else float(abs(np.linalg.det(label_map.affine[:3, :3]))) / 1000
    counts = {0: 0, **{i: int(n) for i, n in enumerate(count_voxels(label_map.array)) if i}}
    return {i: {"pixels": n, "area_mm2": n * area_mm2, "volume_ml": n * volume_ml} for i, n in counts.items()}
