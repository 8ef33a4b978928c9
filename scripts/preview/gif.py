"""The axial slices of a case as an animated GIF: image, prediction and label side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from scripts.common.files import atomic_path
from scripts.preview.rendering import (
    CT_WINDOW_HU,
    IntensityWindow,
    Scene,
    inside_color,
    make_scene,
    render,
    slice_positions,
)

FRAME_MS, CAPTION_PX, GAP_PX = 100, 24, 4
PALETTE_FRAMES, PALETTE_COLORS, MAX_FIXED_COLORS, GRAY_STEP = 8, 256, 200, 4
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
    window: IntensityWindow | None = CT_WINDOW_HU,
    max_frames: int = 60,
    max_panel_px: int = 320,
) -> None:
    """Write an animated GIF of the axial slices from feet to head: image, prediction and, if given, label.

    It shows the slices with organs and a few on either side, or all if both maps are empty.

    Args:
        image: intensities.
        pred: predicted class ids on the same grid.
        path: the GIF file.
        affine: (4, 4), voxel index to mm, any orientation.
        label: reference class ids on the same grid.
        class_names: class id to organ.
        window: intensities shown as black and white; None takes the 1st and 99th percentile, as MR needs.
        max_frames: maximum number of slices; of more, some are left out evenly.
        max_panel_px: longer side of each panel in pixels.

    Shape:
        image, pred, label: (X, Y, Z).

    Raises:
        InputError: shapes differ, or a map holds a class that class_names lacks.
    """
    maps = {"prediction": pred} if label is None else {"prediction": pred, "reference": label}
    scene = make_scene(image, maps, affine=affine, class_names=class_names, window=window)
    positions = slice_positions(scene, max_frames)
    frames = [_frame(scene, index, max_panel_px) for index in positions]
    for number, frame in enumerate(frames, start=1):
        # the bar shows the position; it also keeps equal frames apart, which Pillow would merge
        frame[-2:, : frame.shape[1] * number // len(frames)] = BAR_GRAY
    palette = _common_palette(frames, scene)
    first, *others = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    with atomic_path(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0)


def _common_palette(frames: list[np.ndarray], scene: Scene) -> Image.Image:
    """Choose the colours of all frames: a palette of its own per frame would flicker.

    Grays and the colours of the organs' outlines and insides are set: small organs are too few pixels to win a place,
    and a gray that did not win one would be tinted.
    """
    colors = [scene.colors[class_id] for class_id in scene.present]
    grays = [(level, level, level) for level in range(0, 256, GRAY_STEP)]
    fixed = [*grays, *colors, *map(inside_color, colors)][:MAX_FIXED_COLORS]
    sample = Image.fromarray(np.vstack(frames[:: math.ceil(len(frames) / PALETTE_FRAMES)]))
    mixed = sample.quantize(PALETTE_COLORS - len(fixed)).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*mixed, *chain.from_iterable(fixed)])
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
