"""Which organs of a prediction are complete, cut by the edge of the image, or absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from scripts.common.grids import GridArray, inferior_superior_axis
from scripts.common.label_maps import count_voxels
from scripts.common.organs import foreground_classes
from scripts.inference.case_handler import case_name, decollated, label_array, source_path
from scripts.inference.table_handler import LongTableHandler

Cohort = Callable[[GridArray], Mapping[int, Mapping[str, float]]]
"""Label map to class id to column to percentile; its attribute `columns` names the columns."""

FACES = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def cut_faces(label_map: GridArray, scanned: tuple[int, int] | None = None) -> dict[int, list[str]]:
    """Find the classes that reach the edge of the image, where they may go on.

    Args:
        label_map: class ids, uint8 or uint16, (X, Y, Z).
        scanned: start and stop of the slices that were scanned; see `scripts.common.grids.scanned_slices`.

    Returns:
        Class id to faces of the image in the patient's directions, of oblique images the nearest ones.

    >>> cut_faces(GridArray(np.pad(np.ones((2, 2, 2), np.uint8), ((1, 1), (1, 1), (0, 1))), np.eye(4)))[1]
    ['inferior']
    """
    found: dict[int, list[str]] = {}
    for axis, code in enumerate(nib.aff2axcodes(label_map.affine)):
        start, stop = 0, label_map.array.shape[axis]
        if scanned and axis == inferior_superior_axis(label_map.affine):
            start, stop = scanned
        volume = np.moveaxis(label_map.array, axis, 0)
        for slab, face in ((volume[: start + 1], _OPPOSITE[code]), (volume[stop - 1 :], code)):
            for class_id in np.flatnonzero(np.bincount(slab.ravel())):
                found.setdefault(int(class_id), []).append(FACES[face])
    return found


class OrgansSaver(LongTableHandler):
    """Write `organs.csv`: a row per case and organ, which says whether the organ's volume is that of the whole organ.

    Columns: `case`, `organ`, `volume_ml`, `absent` (no voxel: not found, removed by surgery or outside of the image),
    `cut` (faces of the image that it reaches, such as `inferior superior`; its volume is then that of a part), and with
    `cohort` percentiles among the organs of other people. The volumes of cut organs are cut too: compare them only with
    those of a cohort of the same field of view.

    The edge is that of the image, without slices of a single value at its inferior and superior face. The circle of a
    CT's field of view, outside of which slices hold no tissue, is not an edge here. A network may miss the voxels
    beside the edge, so an organ that is not `cut` may be so by a voxel or two.

    Args:
        output_dir: folder of the table.
        class_names: class id to organ, such as the metadata's `channel_def`; the background 0 is left out.
        cohort: adds percentiles, such as `scripts.solf.percentiles.CohortPercentiles`.
        pred_key: key of the predicted label map in the engine's output.
        image_key: key of the image in the engine's batch, whose metadata may tell `scanned_slices`.

    Shape:
        The label map: (1, X, Y, Z), a MetaTensor.

    Raises:
        InputError: when the run starts, if the table of earlier runs is damaged or has other columns.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Mapping[int, str],
        *,
        cohort: Cohort | None = None,
        pred_key: str = "pred",
        image_key: str = "image",
    ) -> None:
        self.class_names, self.cohort = foreground_classes(class_names), cohort
        columns = ["organ", "volume_ml", "absent", "cut", *(cohort.columns if cohort else [])]
        super().__init__(Path(output_dir) / "organs.csv", columns, decimals=3)
        self.pred_key, self.image_key = pred_key, image_key

    def __call__(self, engine: Engine) -> None:
        """Describe the organs of the cases of one iteration and rewrite the table.

        Raises:
            InputError: the prediction is missing or not a label map, or the table cannot be written.
        """
        for batch_item, output_item in decollated(engine):
            case = case_name(batch_item)
            meta = getattr(batch_item.get(self.image_key), "meta", {})
            pred = label_array(output_item, self.pred_key, case=case)
            self.add(case, self._rows_of(pred, meta.get("scanned_slices")), source=source_path(batch_item))

    def _rows_of(self, pred: GridArray, scanned: tuple[int, int] | None) -> list[dict[str, object]]:
        voxel_ml = float(abs(np.linalg.det(pred.affine[:3, :3]))) / 1000
        counts, cut = count_voxels(pred.array), cut_faces(pred, scanned)
        percentiles = self.cohort(pred) if self.cohort else {}
        rows = []
        for class_id, organ in self.class_names.items():
            voxels = int(counts[class_id]) if class_id < len(counts) else 0
            row = {"organ": organ, "volume_ml": voxels * voxel_ml, "absent": voxels == 0}
            unknown = dict.fromkeys(self.columns, np.nan)
            rows.append({**unknown, **row, "cut": " ".join(cut.get(class_id, ())), **percentiles.get(class_id, {})})
        return rows
