"""A run through the axial slices of a case as a GIF: image, prediction and reference side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from scripts.files import atomic_path
from scripts.rendering import CT_WINDOW_HU, Scene, Window, make_scene, render, slice_run

FRAME_MS, CAPTION_PX, GAP_PX = 100, 24, 4
PALETTE_FRAMES, PALETTE_COLORS = 8, 192
BACKGROUND, BRIGHT, BAR_GRAY = "#000000", "#f2f4f7", 154

Volume = np.ndarray | torch.Tensor


def slice_gif(
    image: Volume,
    pred: Volume,
    path: str | Path,
    *,
    affine: np.ndarray,
    label: Volume | None = None,
    class_names: Mapping[int, str],
    window_hu: Window | None = CT_WINDOW_HU,
    max_frames: int = 60,
    max_panel_px: int = 320,
) -> None:
    """Write a looping run through the axial slices, feet to head: image, prediction and, if given, label.

    It runs over the slices where either map has organs and a few around them; over all if both are empty.

    Args:
        image: intensities.
        pred: predicted class ids on the same grid.
        path: the GIF file.
        affine: (4, 4), voxel index to mm, any orientation.
        label: reference class ids on the same grid.
        class_names: class id to organ.
        window_hu: intensities shown as black and white; None takes the 1st and 99th percentile, as MR needs.
        max_frames: more slices than these are thinned out evenly.
        max_panel_px: longer side of each panel in pixels.

    Shape:
        image, pred, label: (X, Y, Z).

    Raises:
        ValueError: shapes differ, or a map holds a class that class_names lacks.
    """
    maps = {"prediction": pred} if label is None else {"prediction": pred, "reference": label}
    scene = make_scene(image, maps, affine=affine, class_names=class_names, window=window_hu)
    positions = slice_run(scene, max_frames)
    frames = [_frame(scene, index, max_panel_px) for index in positions]
    for number, frame in enumerate(frames, start=1):
        # a bar shows how far the run is; it also keeps equal frames apart, which Pillow would merge
        frame[-2:, : frame.shape[1] * number // len(frames)] = BAR_GRAY
    palette = _common_palette(frames, scene)
    first, *others = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    with atomic_path(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0)


def _common_palette(frames: list[np.ndarray], scene: Scene) -> Image.Image:
    """Choose the colours of all frames: a palette of its own per frame would flicker.

    The organs' pure colours are set, because their thin outlines are too few pixels to win a place.
    """
    rows = [class_id - 1 for class_id in scene.present()][: PALETTE_COLORS // 2]
    pure = (scene.colors[rows] * 255).round().astype(int)
    sample = Image.fromarray(np.vstack(frames[:: math.ceil(len(frames) / PALETTE_FRAMES)]))
    mixed = sample.quantize(PALETTE_COLORS - len(pure)).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*mixed, *pure.ravel().tolist()])
    return palette


def _frame(scene: Scene, index: int, max_panel_px: int) -> np.ndarray:
    """Draw one slice as a row of captioned panels: (height, width, 3) uint8."""
    size_mm = scene.size_mm("axial")
    height, width = (max(1, round(mm / max(size_mm) * max_panel_px)) for mm in size_mm)
    panels = {"image": None} | {name: name for name in scene.maps}
    canvas = Image.new("RGB", ((width + GAP_PX) * len(panels) - GAP_PX, height + CAPTION_PX), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for number, (caption, name) in enumerate(panels.items()):
        left = number * (width + GAP_PX)
        picture = render(scene, name, "axial", index, size_px=(height, width), outline_px=1.0)
        canvas.paste(Image.fromarray(picture), (left, CAPTION_PX))
        draw.text((left + width / 2, CAPTION_PX / 2), caption, fill=BRIGHT, font=font, anchor="mm")
    return np.array(canvas)
