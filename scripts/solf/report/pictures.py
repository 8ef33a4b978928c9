"""Pictures of rejected labels: an organ in three planes, outlined among the others in muted colours."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor
from torch.nn.functional import avg_pool2d

from scripts.common.errors import InputError
from scripts.preview.rendering import (
    PLANES,
    SUPERSAMPLING,
    best_slices,
    borders,
    extract_slice,
    ras_spacing_mm,
    smooth_labels,
    to_ras,
)
from scripts.solf.report.blocks import MAX_LABEL

WIDTH_PX, MAX_HEIGHT_PX, GAP_PX, OUTLINE_PX, BAR_PX = 1080, 420, 12, 3, 3
MARGIN_MM, MIN_VIEW_MM = 40.0, 220.0
SCALE_BAR_MM = 50.0
BACKGROUND, REJECTED, BAR = "#10151b", "#ffb000", "#f2f4f7"
MUTED = ("#3b4a5c", "#4a6073", "#5a6b7b", "#395a6f", "#4b5576", "#466a6d")
PALETTE_SIZE = 48
_OTHER_REJECTED, _SHOWN = len(MUTED) + 1, len(MUTED) + 2
_COLORS = np.array([ImageColor.getrgb(c) for c in (BACKGROUND, *MUTED, REJECTED, REJECTED)], dtype=np.float32) / 255
_FILL = np.array([1.0] * (len(MUTED) + 1) + [0.25, 0.55], dtype=np.float32)
_BORDER = np.array([1.0] + [0.7] * len(MUTED) + [1.0, 1.0], dtype=np.float32)


def draw_organ(
    labels: np.ndarray, affine: np.ndarray, path: Path, *, label: int, rejected: Collection[int]
) -> tuple[int, int]:
    """Draw the largest axial, coronal and sagittal section of a label and its surroundings, at the same scale.

    Radiological orientation: the patient's right is on the left, the head or the front is up. The label is filled and
    outlined, other rejected labels are outlined, the rest is muted. The bar in the first slice is 5 cm long.

    Args:
        labels: label ids.
        affine: (4, 4), voxel indices to mm, any orientation.
        path: the PNG file.
        label: id of the label to show.
        rejected: ids of all rejected labels of the map.

    Returns:
        Width and height of the picture.

    Shape:
        labels: (I, J, K).

    Raises:
        InputError: the map does not hold the label.
    """
    labels, spacing_mm = to_ras(labels, affine), ras_spacing_mm(affine)
    organ = labels == label
    if not organ.any():
        raise InputError(f"does not hold label {label} any more")
    view = tuple(
        _view(organ.any(axis=others), mm) for others, mm in zip(((1, 2), (0, 2), (0, 1)), spacing_mm, strict=True)
    )
    indices = best_slices(organ[view])
    classes = _classes(label, rejected)[labels[view]]
    x, y, z = np.array(classes.shape) * spacing_mm
    sizes_mm = {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}
    free_px = WIDTH_PX - 2 * GAP_PX
    scale = min(free_px / sum(w for _, w in sizes_mm.values()), MAX_HEIGHT_PX / max(h for h, _ in sizes_mm.values()))
    panels = [
        _panel(extract_slice(classes, plane, indices[plane]), [max(1, round(mm * scale)) for mm in sizes_mm[plane]])
        for plane in PLANES
    ]
    _draw_bar(panels[0], round(SCALE_BAR_MM * scale))
    return _save(panels, path)


def _view(filled: np.ndarray, spacing_mm: float) -> slice:
    """Return the range of an axis to show: the organ with MARGIN_MM, at least MIN_VIEW_MM around its centre."""
    where = np.flatnonzero(filled)
    middle, extent = (where[0] + where[-1] + 1) / 2, where[-1] + 1 - where[0]
    half = max(extent * spacing_mm / 2 + MARGIN_MM, MIN_VIEW_MM / 2) / spacing_mm
    return slice(max(0, int(middle - half)), min(len(filled), int(np.ceil(middle + half))))


def _classes(label: int, rejected: Collection[int]) -> np.ndarray:
    """Return the row of _COLORS for each label id."""
    classes = (np.arange(MAX_LABEL + 1) % len(MUTED) + 1).astype(np.uint8)
    classes[0] = 0
    classes[list(rejected)] = _OTHER_REJECTED
    classes[label] = _SHOWN
    return classes


def _panel(classes: np.ndarray, size_px: list[int]) -> np.ndarray:
    """Return a slice as (height, width, 3) colours in [0, 1]."""
    fine = smooth_labels(classes, (size_px[0] * SUPERSAMPLING, size_px[1] * SUPERSAMPLING))
    outlined = borders(fine, OUTLINE_PX * SUPERSAMPLING // 2)
    opacity = np.where(outlined, _BORDER[fine], _FILL[fine])[..., None]
    picture = _COLORS[0] + opacity * (_COLORS[fine] - _COLORS[0])
    channels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    return avg_pool2d(channels, SUPERSAMPLING)[0].permute(1, 2, 0).numpy().copy()


def _draw_bar(panel: np.ndarray, length_px: int) -> None:
    """Draw the scale bar into the lower right corner, if it fits."""
    height, width, _ = panel.shape
    if length_px + 2 * GAP_PX < width and height > 3 * GAP_PX:
        panel[height - GAP_PX - BAR_PX : height - GAP_PX, width - GAP_PX - length_px : width - GAP_PX] = np.divide(
            ImageColor.getrgb(BAR), 255
        )


def _save(panels: list[np.ndarray], path: Path) -> tuple[int, int]:
    """Write panels side by side, with a palette, which takes a quarter of the bytes."""
    height = max(panel.shape[0] for panel in panels)
    canvas = np.empty((height, sum(p.shape[1] for p in panels) + GAP_PX * (len(panels) - 1), 3), dtype=np.float32)
    canvas[:] = _COLORS[0]
    left = 0
    for panel in panels:
        top = (height - panel.shape[0]) // 2
        canvas[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
        left += panel.shape[1] + GAP_PX
    picture = Image.fromarray((canvas * 255).round().astype(np.uint8))
    palette = picture.quantize(PALETTE_SIZE, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(path, format="PNG", optimize=True)
    return picture.size
