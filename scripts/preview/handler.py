"""Previews of each case of an evaluator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import Transform

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.common.grids import GridArray, check_same_grid, describe_mismatch
from scripts.common.names import printable
from scripts.common.organs import foreground_classes
from scripts.inference.case_handler import (
    CaseRecords,
    case_name,
    decollated,
    grid_array,
    label_array,
    record_case,
    source_path,
)
from scripts.io.loading import LoadVolumed
from scripts.preview.gif import slice_gif
from scripts.preview.png import preview_png
from scripts.preview.rendering import CT_WINDOW_HU, IntensityWindow

logger = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """What is drawn of a case.

    Attributes:
        case: its name.
        image: intensities.
        pred: predicted class ids.
        label: reference class ids, if there are any.
        affine: (4, 4), voxel indices to mm.

    Shape:
        image, pred, label: (X, Y, Z).
    """

    case: str
    image: np.ndarray
    pred: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray


class PreviewSaver:
    """Write `<case>_preview.png`, and `<case>.gif` if `gif` is true, for each case of an evaluator.

    The engine's image is resampled and cropped, so the original is read again from its file. The label is drawn if it
    lies on the grid of the prediction; the path of one in the batch is read. What fails here fails the case.

    Args:
        output_dir: folder of the pictures.
        class_names: class id to organ, such as the metadata's `channel_def`; the background 0 is left out.
        gif: also write the GIF; also "true" or "false".
        window: intensities shown as black and white; None takes the 1st and 99th percentile, as MR needs.
        label_transform: dictionary transform of a label that is read from its file, such as one that renumbers it.
        read_image: reads the channel to show, (1, X, Y, Z), from an image's file; by default `LoadVolumed`.
        image_key: key of the image in the engine's batch.
        pred_key: key of the predicted label map in the engine's output.
        label_key: key of the reference label map in the engine's output, or of its path in the batch.

    Shape:
        Label maps: (1, X, Y, Z) MetaTensors. Of an image of several files the one that its metadata name is shown.
    """

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Mapping[int, str],
        *,
        gif: bool | str = False,
        window: IntensityWindow | None = CT_WINDOW_HU,
        label_transform: Transform | None = None,
        read_image: Callable[[str], MetaTensor] | None = None,
        image_key: str = "image",
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = foreground_classes(class_names)
        self.gif, self.window = parse_flag(gif, "gif"), window
        self.label_transform = label_transform
        self.image_key, self.pred_key, self.label_key = image_key, pred_key, label_key
        self._cases: CaseRecords = {}
        self._loader = LoadVolumed(image_key)
        self._read_image = read_image or partial(self._loader.read, is_image=False)

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of one iteration.

        Raises:
            InputError: the image's file is unknown, or the prediction is not a label map on its grid.
        """
        for batch_item, output_item in decollated(engine):
            try:
                self._draw(batch_item, output_item, case=case_name(batch_item))
            except InputError as error:
                raise InputError(f"segmented, but not drawn: {error}") from error

    def _draw(self, batch_item: Mapping[str, Any], output_item: Mapping[str, Any], *, case: str) -> None:
        """Draw one decollated case."""
        pred = label_array(output_item, self.pred_key, case=case)
        source = source_path(batch_item, key=self.image_key)
        if not source:
            raise InputError(f'{case}: "{self.image_key}" does not name its file: load it with LoadVolumed.')
        record_case(self._cases, case, source=source, value=None)
        image = grid_array(self._read_image(source), name=printable(source))
        check_same_grid(pred, image, case=case, name="image")
        given = output_item.get(self.label_key)
        label = self._native_label(batch_item.get(self.label_key) if given is None else given, pred, case)
        drawn = Drawn(case, image.array, pred.array, label, pred.affine)
        self.write_png(drawn, self.output_dir / f"{case}_preview.png")
        if self.gif and 1 not in drawn.image.shape:  # one slice does not move
            slice_gif(drawn.image, drawn.pred, self.output_dir / f"{case}.gif", **self._options(drawn))

    def write_png(self, drawn: Drawn, path: Path) -> None:
        """Write the picture of a case."""
        preview_png(drawn.image, drawn.pred, path, title=drawn.case, **self._options(drawn))

    def _options(self, drawn: Drawn) -> dict[str, Any]:
        names = {"class_names": self.class_names, "window": self.window}
        return {"affine": drawn.affine, "label": drawn.label, **names}

    def _native_label(self, label: Any, pred: GridArray, case: str) -> np.ndarray | None:
        """Return the label if there is one on the grid of the prediction; a datalist gives its path."""
        if isinstance(label, str):
            loaded = {self.label_key: self._loader.read(label, is_image=False)}
            label = (self.label_transform(loaded) if self.label_transform else loaded)[self.label_key]
        if label is None:
            return None
        volume = label_array({self.label_key: label}, self.label_key, case=case)
        if mismatch := describe_mismatch(volume.grid, pred.grid):
            logger.warning("%s: drawn without its label, which does not lie on the same grid: %s", case, mismatch)
            return None
        return volume.array
