"""Frames with the outline of the bone that was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform
from PIL import Image
from scipy.ndimage import binary_dilation

from scripts.common.files import atomic_path
from scripts.common.grids import GridArray
from scripts.io.pictures import LoadPictureOrVolumed, read_image
from scripts.preview.handler import Drawn, PreviewSaver
from scripts.ultrabones.frames import frames_of

PREDICTION, REFERENCE = (255, 80, 60), (70, 220, 110)


class OverlaySaver(PreviewSaver):
    """Write `<case>_preview.png`: the frame with most bone, and beside it with the prediction's outline in red.

    A label is drawn in green. With `gif`, a sweep also gets `<case>.gif`; see `PreviewSaver`.

    Args:
        label_transform: as of `PreviewSaver`.
        options: as `PreviewSaver`.
    """

    def __init__(self, *, label_transform: Transform | None = None, **options: Any) -> None:
        names = {1: "bone"}
        super().__init__(
            class_names=names, window=None, read_image=read_image, label_transform=label_transform, **options
        )
        self._loader = LoadPictureOrVolumed(self.label_key, keep_255=True)

    def write_png(self, drawn: Drawn, path: Path) -> None:
        """Write the picture of a case."""
        image, pred = (frames_of(GridArray(volume, drawn.affine)) for volume in (drawn.image, drawn.pred))
        shown = int(pred.astype(bool).sum((1, 2)).argmax())
        masks = {PREDICTION: pred[shown]}
        if drawn.label is not None:
            masks[REFERENCE] = frames_of(GridArray(drawn.label, drawn.affine))[shown]
        canvas = overlay(image[shown], masks)
        with atomic_path(path) as temporary:
            Image.fromarray(canvas).save(temporary, format="PNG", compress_level=3)


def overlay(image: np.ndarray, masks: dict[tuple[int, int, int], np.ndarray]) -> np.ndarray:
    """Draw a frame beside itself with the outlines of masks, (H, W) each: (H, 2 W, 3), uint8.

    Black and white are the least and the largest value of the frame.
    """
    low, high = float(image.min()), float(image.max())
    gray = np.round((image - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    canvas = np.repeat(np.concatenate([gray, gray], axis=1)[..., None], 3, axis=2)
    for color, mask in masks.items():
        bone = mask.astype(bool)
        canvas[:, gray.shape[1] :][binary_dilation(bone) & ~bone] = color
    return canvas
