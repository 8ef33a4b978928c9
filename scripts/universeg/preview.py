"""Pictures of a prediction beside the examples that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image, ImageDraw, ImageFont

from scripts.common.files import atomic_path
from scripts.io.pictures import PICTURE_AFFINE, LoadPictureOrVolumed, read_image
from scripts.preview.handler import Drawn, PreviewSaver
from scripts.preview.rendering import Plane, Scene, best_slices, make_scene, render
from scripts.universeg.support import SupportSet

MAX_EXAMPLES, EXAMPLE_PX, PANEL_PX, CAPTION_PX, GAP_PX = 8, 160, 448, 22, 6
BACKGROUND, BRIGHT = "#000000", "#f2f4f7"


class SupportPreviewSaver(PreviewSaver):
    """Write `<case>_preview.png`: examples of the support above, the prediction below; see `PreviewSaver`.

    Args:
        support: the support set; `MAX_EXAMPLES` of its slices are shown, spread evenly.
        plane: in which volumes are sliced; the slice that shows most classes is drawn.
        options: as `PreviewSaver`.
    """

    def __init__(self, *, support: SupportSet, plane: Plane = "axial", **options: Any) -> None:
        super().__init__(window=None, read_image=read_image, label_transform=self._to_channels, **options)
        self.support, self.plane = support, plane
        self._loader = LoadPictureOrVolumed(self.label_key)
        self._examples: np.ndarray | None = None

    def _to_channels(self, case: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        """Replace the class ids of a label's file by those of the prediction; other classes are left out."""
        label, channels = case[self.label_key], torch.zeros_like(case[self.label_key])
        for channel, value in self.support.values.items():
            channels[label == value] = channel
        return {self.label_key: channels}

    def write_png(self, drawn: Drawn, path: Path) -> None:
        """Write the picture of a case."""
        if self._examples is None:
            self._examples = self._draw_examples()
        maps = {"prediction": drawn.pred, "reference": drawn.label}
        maps = {name: volume for name, volume in maps.items() if volume is not None}
        names = {"class_names": self.class_names, "window": self.window}
        scene = make_scene(drawn.image, maps, affine=drawn.affine, **names)
        shown = next((volume for volume in scene.maps.values() if volume.any()), scene.maps["prediction"])
        index = best_slices(shown)[self.plane]
        panels = {drawn.case: None} | {name: name for name in scene.maps}
        row = _row([(caption, _panel(scene, name, self.plane, index, PANEL_PX)) for caption, name in panels.items()])
        canvas = _stack([self._examples, row])
        with atomic_path(path) as temporary:
            Image.fromarray(canvas).save(temporary, format="PNG", optimize=True)

    def _draw_examples(self) -> np.ndarray:
        slices = self.support.slices
        chosen = np.unique(np.linspace(0, len(slices) - 1, MAX_EXAMPLES).round().astype(int))
        panels = []
        for one in (slices[place] for place in chosen):
            label = self._to_channels({self.label_key: one.label})[self.label_key]
            image, label = (np.ascontiguousarray(a.numpy().T)[..., None] for a in (one.image, label))
            options = {"affine": PICTURE_AFFINE, "class_names": self.class_names, "window": (0.0, 1.0)}
            scene = make_scene(image, {"label": label}, **options)
            panels.append((f"support {one.case}", _panel(scene, "label", "axial", 0, EXAMPLE_PX)))
        return _row(panels)


def _panel(scene: Scene, name: str | None, plane: Plane, index: int, px: int) -> np.ndarray:
    """Draw a slice; its longer side has `px` pixels."""
    size_mm = scene.size_mm(plane)
    height, width = (max(1, round(mm / max(size_mm) * px)) for mm in size_mm)
    return render(scene, name, plane, index, size_px=(height, width), outline_px=1.0)


def _row(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Put captioned pictures side by side."""
    height = max(picture.shape[0] for _, picture in panels) + CAPTION_PX
    width = sum(picture.shape[1] + GAP_PX for _, picture in panels) - GAP_PX
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw, font, left = ImageDraw.Draw(canvas), ImageFont.load_default(size=12), 0
    for caption, picture in panels:
        canvas.paste(Image.fromarray(picture), (left, CAPTION_PX))
        text = caption.encode("ascii", "replace").decode()
        while len(text) > 4 and draw.textlength(text, font=font) > picture.shape[1]:
            text = f"{text[:-4]}..."
        draw.text((left + picture.shape[1] / 2, CAPTION_PX / 2), text, fill=BRIGHT, font=font, anchor="mm")
        left += picture.shape[1] + GAP_PX
    return np.asarray(canvas)


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Put pictures below each other, with black at the right of the narrower ones."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, GAP_PX), (0, width - row.shape[1]), (0, 0))) for row in rows])
