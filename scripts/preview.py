"""Preview pictures of a case: three planes as a PNG, and the handler that draws them with the GIF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from monai.engines.utils import IterationEvents
from monai.transforms import Transform

from scripts.cases import (
    Collected,
    GridArray,
    case_name,
    check_same_grid,
    decollated,
    grid_array,
    label_array,
    remember,
    same_grid,
    source_path,
)
from scripts.files import atomic_path
from scripts.labels import foreground_classes
from scripts.rendering import CT_WINDOW_HU, PLANES, Plane, Scene, Window, best_slices, make_scene, render
from scripts.settings import flag
from scripts.slice_gif import slice_gif
from scripts.transforms import LoadVolumed

WIDTH_IN, MAX_ROW_IN, DPI = 13.0, 7.0, 130
MARGIN_IN, GAP_IN, TITLE_IN, HEADING_IN, LEGEND_LINE_IN = 0.15, 0.12, 0.42, 0.32, 0.27
LEGEND_COLUMNS = 7
EDGE_LETTERS: dict[Plane, str] = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
EDGE_PLACES = ((0.015, 0.5), (0.985, 0.5), (0.5, 0.975), (0.5, 0.025))  # left, right, top, bottom
SCALE_BAR_MM = 50.0
BACKGROUND, BRIGHT, DIM = "#000000", "#f2f4f7", "#9aa5b1"
HALO = {"color": BRIGHT, "path_effects": [withStroke(linewidth=2.5, foreground=BACKGROUND)]}

Volume = np.ndarray | torch.Tensor


def preview_png(
    image: Volume,
    pred: Volume,
    path: str | Path,
    *,
    affine: np.ndarray,
    label: Volume | None = None,
    class_names: Mapping[int, str],
    window_hu: Window | None = CT_WINDOW_HU,
    title: str = "",
) -> None:
    """Draw an axial, a coronal and a sagittal slice with the predicted organs, below with those of the label.

    The slices are those that show most organs of the prediction, or else of the label. They follow the
    anatomical planes nearest to the grid's, seen as radiologists do: the patient's right on the left, the
    head up. Borders run smoothly between voxel centres.

    Args:
        image: intensities.
        pred: predicted class ids on the same grid; where it is empty, the middle slices are shown.
        path: the PNG file.
        affine: (4, 4), voxel index to mm, any orientation.
        label: reference class ids on the same grid.
        class_names: class id to organ.
        window_hu: intensities shown as black and white; None takes the 1st and 99th percentile, as MR needs.
        title: headline, such as the case.

    Shape:
        image, pred, label: (X, Y, Z).

    Raises:
        ValueError: shapes differ, or a map holds a class that class_names lacks.
    """
    maps = {"prediction": pred} if label is None else {"prediction": pred, "reference": label}
    scene = make_scene(image, maps, affine=affine, class_names=class_names, window=window_hu)
    indices = best_slices(next((m for m in scene.maps.values() if m.any()), scene.maps["prediction"]))
    figure, rows = _lay_out(scene, title)
    for name, axes in rows.items():
        for plane, axis in axes.items():
            _draw_panel(axis, scene, name, plane, indices[plane])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _lay_out(scene: Scene, title: str) -> tuple[Figure, dict[str, dict[Plane, Axes]]]:
    """Make a figure with a row of three panels per map, all at one scale, a headline and a legend."""
    sizes = {plane: scene.size_mm(plane) for plane in PLANES}
    row_mm, width_mm = max(h for h, _ in sizes.values()), sum(w for _, w in sizes.values())
    free_in = WIDTH_IN - 2 * MARGIN_IN - 2 * GAP_IN
    scale = min(free_in / width_mm, MAX_ROW_IN / row_mm)
    present = scene.present()
    legend_in = LEGEND_LINE_IN * math.ceil(len(present) / LEGEND_COLUMNS) + MARGIN_IN
    row_in = row_mm * scale + HEADING_IN
    title_in = TITLE_IN if title else 0.0
    height_in = title_in + row_in * len(scene.maps) + legend_in + MARGIN_IN
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    top, rows = height_in - title_in, {}
    for name in scene.maps:
        left, rows[name] = MARGIN_IN + (free_in - width_mm * scale) / 2, {}
        for plane, (h, w) in sizes.items():
            bottom = top - HEADING_IN - (row_mm + h) / 2 * scale
            box = (left / WIDTH_IN, bottom / height_in, w * scale / WIDTH_IN, h * scale / height_in)
            rows[name][plane] = figure.add_axes(box)
            left += w * scale + GAP_IN
        top -= row_in
    _add_title_and_legend(figure, scene, title, present)
    return figure, rows


def _draw_panel(axis: Axes, scene: Scene, name: str, plane: Plane, index: int) -> None:
    """Draw a slice with a heading, the letters of the patient's sides and, if axial, a scale bar."""
    height_mm, width_mm = scene.size_mm(plane)
    box = axis.get_window_extent()
    size_px = (max(1, round(box.height)), max(1, round(box.width)))
    picture = render(scene, name, plane, index, size_px=size_px)
    axis.imshow(picture, extent=(0, width_mm, 0, height_mm), interpolation="none")
    axis.axis("off")
    heading = f"{plane} · {name}" if len(scene.maps) > 1 else plane
    axis.set_title(heading, color=DIM, fontsize=11, pad=5)
    for letter, (x, y) in zip(EDGE_LETTERS[plane], EDGE_PLACES, strict=True):
        side = {"ha": "center" if x == 0.5 else "left" if x < 0.5 else "right"}
        side["va"] = "center" if y == 0.5 else "bottom" if y < 0.5 else "top"
        axis.text(x, y, letter, transform=axis.transAxes, fontsize=10, **side, **HALO)
    if plane == "axial" and width_mm > 2 * SCALE_BAR_MM:
        left, low = 0.95 * width_mm - SCALE_BAR_MM, 0.045 * height_mm
        axis.add_patch(Rectangle((left, low), SCALE_BAR_MM, 0.007 * height_mm, color=BRIGHT))
        middle, caption = left + SCALE_BAR_MM / 2, f"{SCALE_BAR_MM / 10:g} cm"
        axis.text(middle, low + 0.015 * height_mm, caption, fontsize=9, ha="center", va="bottom", **HALO)


def _add_title_and_legend(figure: Figure, scene: Scene, title: str, present: list[int]) -> None:
    """Write the headline and name the colours of the organs that the maps hold."""
    height_in = figure.get_figheight()
    if title:
        y = 1 - TITLE_IN / 2 / height_in
        figure.text(0.5, y, title, color=BRIGHT, fontsize=15, ha="center", va="center")
    if present:
        patches = [Patch(color=scene.colors[i - 1], label=scene.names[i]) for i in present]
        figure.legend(
            handles=patches,
            loc="lower center",
            bbox_to_anchor=(0.5, 0.3 * MARGIN_IN / height_in),
            ncols=min(LEGEND_COLUMNS, len(present)),
            frameon=False,
            labelcolor=BRIGHT,
            fontsize=11,
            handlelength=1.0,
            handleheight=1.0,
        )


class PreviewSaver:
    """Write `<case>_preview.png`, and `<case>.gif` if wanted, for each case of an evaluator.

    The engine's image is resampled and cropped, so the original is read again from its file. A label is drawn
    where the case has one on the prediction's grid, or names the file of one. What fails here fails the case.

    Args:
        output_dir: folder of the pictures.
        class_names: class id to organ, such as the metadata's `channel_def`; the background 0 is left out.
        gif: also write the GIF.
        window: intensities shown as black and white; None takes the 1st and 99th percentile, as MR needs.
        label_transform: dictionary transform of a label that was read from its file, such as to other class ids.
        image_key: key of the image in the engine's batch.
        pred_key: key of the predicted label map in the engine's output.
        label_key: key of the reference label map in the engine's output, or of its path in the batch.

    Shape:
        Label maps: (1, X, Y, Z) MetaTensors. Of an image with several channels the first is shown.
    """

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Mapping[int, str],
        *,
        gif: bool | str = False,
        window: Window | None = CT_WINDOW_HU,
        label_transform: Transform | None = None,
        image_key: str = "image",
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = foreground_classes(class_names)
        self.gif, self.window = flag(gif, "gif"), window
        self.label_transform = label_transform
        self.image_key, self.pred_key, self.label_key = image_key, pred_key, label_key
        self._cases: Collected = {}
        self._load = LoadVolumed("volume", image_keys=())

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of one iteration.

        Raises:
            ValueError: the image's file is unknown, or the prediction is no label map on its grid.
        """
        for batch_item, output_item in decollated(engine):
            case = case_name(batch_item)
            pred = label_array(output_item, self.pred_key, case=case)
            image = self._native_image(batch_item, case)
            check_same_grid(pred, image, case=case, name="image")
            given = output_item.get(self.label_key)
            label = self._native_label(batch_item.get(self.label_key) if given is None else given, pred, case)
            options = {"affine": pred.affine, "label": label, "class_names": self.class_names}
            options["window_hu"] = self.window
            png = self.output_dir / f"{case}_preview.png"
            preview_png(image.array, pred.array, png, title=case, **options)
            if self.gif:
                slice_gif(image.array, pred.array, self.output_dir / f"{case}.gif", **options)

    def _native_image(self, batch_item: Mapping[str, Any], case: str) -> GridArray:
        """Read the first channel of the original image."""
        source = source_path(batch_item, key=self.image_key)
        if not source:
            raise ValueError(f'{case}: "{self.image_key}" does not know its file: load it with LoadImaged.')
        remember(self._cases, case, source=source, value=None)
        return grid_array(self._load({"volume": source})["volume"], name=source)

    def _native_label(self, label: Any, pred: GridArray, case: str) -> np.ndarray | None:
        """Return the label where there is one in native space; a datalist gives the path of one."""
        if isinstance(label, str):
            loaded = {self.label_key: self._load({"volume": label})["volume"]}
            label = (self.label_transform(loaded) if self.label_transform else loaded)[self.label_key]
        if label is None:
            return None
        volume = label_array({self.label_key: label}, self.label_key, case=case)
        return volume.array if same_grid(volume, pred) else None
