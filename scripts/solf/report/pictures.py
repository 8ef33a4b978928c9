"""Pictures of rejected labels: three slices through an organ, outlined among the muted others."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter
from torch.nn.functional import avg_pool2d

from scripts.files import read_nifti
from scripts.rendering import PLANES, SUPERSAMPLING, best_slices, cut, smooth_labels
from scripts.solf.report.blocks import MAX_LABEL
from scripts.solf.transforms import label_values, organ_ids

WIDTH_PX, MAX_HEIGHT_PX, GAP_PX, OUTLINE_PX, BAR_PX = 1080, 420, 12, 3, 3
MARGIN_MM, LEAST_VIEW_MM = 40.0, 220.0
SCALE_BAR_MM = 50.0
BACKGROUND, REJECTED, BAR = "#10151b", "#ffb000", "#f2f4f7"
MUTED = ("#3b4a5c", "#4a6073", "#5a6b7b", "#395a6f", "#4b5576", "#466a6d")
PALETTE_SIZE = 48
_OTHER_REJECTED, _SHOWN = len(MUTED) + 1, len(MUTED) + 2
_COLORS = np.array([to_rgb(color) for color in (BACKGROUND, *MUTED, REJECTED, REJECTED)], dtype=np.float32)
_FILL = np.array([1.0] * (len(MUTED) + 1) + [0.25, 0.55], dtype=np.float32)
_BORDER = np.array([1.0] + [0.7] * len(MUTED) + [1.0, 1.0], dtype=np.float32)


def draw_organ(
    source: str | Path, path: Path, *, label: int, rejected: Collection[int], label_names: str | Path = ""
) -> tuple[int, int]:
    """Draw the largest axial, coronal and sagittal section of a label and what surrounds it, at one scale.

    Seen as radiologists do: the patient's right on the left, the head or the front up. The label is filled and
    outlined, the other rejected ones are outlined, the rest is muted. A bar in the first slice is 5 cm long.

    Args:
        source: file of the label map.
        path: the PNG file.
        label: id of the label to show.
        rejected: ids of all rejected labels of the map.
        label_names: the map's own ids and names, see `scripts.solf.transforms.LoadLabelMapd`.

    Returns:
        Width and height of the picture.

    Raises:
        ValueError: why the map cannot be drawn, without its path.
    """
    labels, spacing_mm = _read_ras(source, label_names)
    organ = labels == label
    if not organ.any():
        raise ValueError(f"holds no label {label} any more")
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
        _panel(cut(classes, plane, indices[plane]), [max(1, round(mm * scale)) for mm in sizes_mm[plane]])
        for plane in PLANES
    ]
    _draw_bar(panels[0], round(SCALE_BAR_MM * scale))
    return _save(panels, path)


def _read_ras(source: str | Path, label_names: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a label map turned to the nearest RAS axes, and its voxel size in mm."""
    volume = read_nifti(source)
    labels = label_values(volume)
    if label_names:
        labels = organ_ids(label_names)[labels]
    turn = nib.orientations.io_orientation(volume.affine)
    spacing_mm = nib.affines.voxel_sizes(volume.affine)[np.argsort(turn[:, 0])]
    return nib.orientations.apply_orientation(labels, turn), spacing_mm


def _view(filled: np.ndarray, spacing_mm: float) -> slice:
    """Return what to show of an axis: the organ and MARGIN_MM, or LEAST_VIEW_MM around its middle."""
    where = np.flatnonzero(filled)
    middle, extent = (where[0] + where[-1] + 1) / 2, where[-1] + 1 - where[0]
    half = max(extent * spacing_mm / 2 + MARGIN_MM, LEAST_VIEW_MM / 2) / spacing_mm
    return slice(max(0, int(middle - half)), min(len(filled), int(np.ceil(middle + half))))


def _classes(label: int, rejected: Collection[int]) -> np.ndarray:
    """Return what each label id is drawn as, a row of _COLORS."""
    classes = (np.arange(MAX_LABEL + 1) % len(MUTED) + 1).astype(np.uint8)
    classes[0] = 0
    classes[list(rejected)] = _OTHER_REJECTED
    classes[label] = _SHOWN
    return classes


def _panel(classes: np.ndarray, size_px: list[int]) -> np.ndarray:
    """Return a slice as (height, width, 3) colours in [0, 1]."""
    fine = smooth_labels(classes, (size_px[0] * SUPERSAMPLING, size_px[1] * SUPERSAMPLING))
    side = OUTLINE_PX * SUPERSAMPLING + 1
    border = maximum_filter(fine, side) != minimum_filter(fine, side)
    opacity = np.where(border, _BORDER[fine], _FILL[fine])[..., None]
    picture = _COLORS[0] + opacity * (_COLORS[fine] - _COLORS[0])
    channels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    return avg_pool2d(channels, SUPERSAMPLING)[0].permute(1, 2, 0).numpy().copy()


def _draw_bar(panel: np.ndarray, length_px: int) -> None:
    """Draw the scale bar into the lower right corner, where it has room."""
    height, width, _ = panel.shape
    if length_px + 2 * GAP_PX < width and height > 3 * GAP_PX:
        panel[height - GAP_PX - BAR_PX : height - GAP_PX, width - GAP_PX - length_px : width - GAP_PX] = to_rgb(BAR)


def _save(panels: list[np.ndarray], path: Path) -> tuple[int, int]:
    """Write panels side by side, in few colours, which takes a quarter of the bytes."""
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
