"""A case in three planes as a PNG: image, prediction and label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from PIL import Image

from scripts.common.files import atomic_path
from scripts.common.names import printable
from scripts.preview.colors import RGB
from scripts.preview.marks import Mark, draw_marks, middle_of, to_ras_marks
from scripts.preview.rendering import (
    CT_WINDOW_HU,
    PLANES,
    IntensityWindow,
    Plane,
    Scene,
    best_slices,
    extract_slice,
    inside_color,
    make_scene,
    render,
)

WIDTH_IN, MAX_ROW_IN, DPI = 13.0, 7.0, 130
MARGIN_IN, GAP_IN, TITLE_IN, HEADING_IN, LEGEND_LINE_IN = 0.15, 0.12, 0.42, 0.32, 0.27
LEGEND_COLUMNS, LEGEND_PT, SWATCH_IN = 7, 11, 0.6  # SWATCH_IN with the gaps on either side
EDGE_LETTERS: dict[Plane, str] = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
EDGE_PLACES = ((0.015, 0.5), (0.985, 0.5), (0.5, 0.975), (0.5, 0.025))  # left, right, top, bottom
SCALE_BAR_MM = 50.0
OUTLINE_PT = 1.2  # in the legend
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
    window: IntensityWindow | None = CT_WINDOW_HU,
    title: str = "",
    marks: Sequence[Mark] = (),
) -> None:
    """Draw an axial, a coronal and a sagittal slice with the organs of the prediction, below with those of the label.

    The slices are those that show most organs of the prediction, or of the label if the prediction is empty. They
    follow the grid's planes, named after the nearest anatomical ones, in radiological orientation: the patient's right
    on the left, the head up. The legend names the organs in these slices.

    Args:
        image: intensities.
        pred: predicted class ids on the same grid.
        path: the PNG file.
        affine: (4, 4), voxel index to mm, any orientation.
        label: reference class ids on the same grid.
        class_names: class id to organ.
        window: intensities shown as black and white; None takes the 1st and 99th percentile, as MR needs.
        title: headline, such as the case.
        marks: what the user gave, drawn over the slices; if the maps are empty, the slices go through the first.

    Shape:
        image, pred, label: (X, Y, Z).

    Raises:
        InputError: shapes differ, or a map holds a class that class_names lacks.

    >>> import tempfile
    >>> image, pred = np.zeros((32, 32, 6), dtype=np.int16), np.zeros((32, 32, 6), dtype=np.uint8)
    >>> pred[8:20, 8:20, 2:5] = 1
    >>> path = Path(tempfile.mkdtemp(), "preview.png")
    >>> preview_png(image, pred, path, affine=np.diag([2.0, 2.0, 4.0, 1.0]), class_names={1: "liver"})
    >>> path.is_file()
    True
    """
    maps = {"prediction": pred} if label is None else {"prediction": pred, "reference": label}
    scene = make_scene(image, maps, affine=affine, class_names=class_names, window=window)
    marks = to_ras_marks(marks, affine, np.shape(image))
    shown_map = next((m for m in scene.maps.values() if m.any()), None)
    middle = middle_of(marks) if shown_map is None else None
    indices = middle or best_slices(scene.maps["prediction"] if shown_map is None else shown_map)
    slices = [extract_slice(volume, plane, indices[plane]) for volume in scene.maps.values() for plane in PLANES]
    shown = sorted({int(class_id) for labels in slices for class_id in np.unique(labels)} - {0})
    figure, rows = _lay_out(scene, title, shown)
    for name, axes in rows.items():
        for plane, axis in axes.items():
            _draw_panel(axis, scene, name, plane, indices[plane])
            draw_marks(axis, scene, marks, plane, indices[plane])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    with atomic_path(path) as temporary:
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(temporary, format="PNG", optimize=True)


def _lay_out(scene: Scene, title: str, shown: Sequence[int]) -> tuple[Figure, dict[str, dict[Plane, Axes]]]:
    """Make a figure with a row of three panels per map, all at one scale, a headline and a legend of class ids."""
    sizes = {plane: scene.size_mm(plane) for plane in PLANES}
    row_mm, width_mm = max(h for h, _ in sizes.values()), sum(w for _, w in sizes.values())
    free_in = WIDTH_IN - 2 * MARGIN_IN - 2 * GAP_IN
    scale = min(free_in / width_mm, MAX_ROW_IN / row_mm)
    columns = _legend_columns([_plain(scene.names[class_id]) for class_id in shown])
    legend_in = LEGEND_LINE_IN * math.ceil(len(shown) / columns) + MARGIN_IN
    row_in = row_mm * scale + HEADING_IN
    title_in = TITLE_IN if title else 0.0
    height_in = title_in + row_in * len(scene.maps) + legend_in + MARGIN_IN
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor=BACKGROUND)
    top, rows = height_in - title_in, {}
    for name in scene.maps:
        left, rows[name] = MARGIN_IN + (free_in - width_mm * scale) / 2, {}
        for plane, (h, w) in sizes.items():
            bottom = top - HEADING_IN - (row_mm + h) / 2 * scale
            box = (left / WIDTH_IN, bottom / height_in, w * scale / WIDTH_IN, h * scale / height_in)
            rows[name][plane] = figure.add_axes(box)
            left += w * scale + GAP_IN
        top -= row_in
    if title:
        y = 1 - TITLE_IN / 2 / height_in
        figure.text(0.5, y, _plain(title), color=BRIGHT, fontsize=15, ha="center", va="center")
    if shown:
        _add_legend(figure, scene, shown, columns)
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


def _plain(text: str) -> str:
    """Return a text as matplotlib draws it letter by letter: a formula between two dollar signs may be invalid."""
    return printable(text).replace("$", r"\$")


def _legend_columns(names: Sequence[str]) -> int:
    """Return how many columns of the legend fit into the width of the figure, at least 1."""
    for columns in range(min(LEGEND_COLUMNS, len(names)), 1, -1):
        parts = np.array_split(list(names), columns)  # as matplotlib splits them
        widths_in = [max(TextPath((0, 0), name, size=LEGEND_PT).get_extents().width / 72 for name in p) for p in parts]
        if sum(widths_in) + columns * SWATCH_IN <= WIDTH_IN - 2 * MARGIN_IN:
            return columns
    return 1


def _add_legend(figure: Figure, scene: Scene, shown: Sequence[int], columns: int) -> None:
    """Name the organs of the slices below them."""
    figure.legend(
        handles=[_swatch(scene.colors[class_id], _plain(scene.names[class_id])) for class_id in shown],
        loc="lower center",
        bbox_to_anchor=(0.5, 0.3 * MARGIN_IN / figure.get_figheight()),
        ncols=columns,
        frameon=False,
        labelcolor=BRIGHT,
        fontsize=LEGEND_PT,
        handlelength=1.0,
        handleheight=1.0,
    )


def _swatch(color: RGB, name: str) -> Patch:
    """Return a patch for the legend that looks like the organ over mid gray: its inside pale, its outline full."""
    inside, outline = ([part / 255 for part in each] for each in (inside_color(color), color))
    return Patch(facecolor=inside, edgecolor=outline, linewidth=OUTLINE_PT, label=name)
