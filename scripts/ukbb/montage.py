"""A picture of each subject for a first look: the four contrasts, with stations, seams and gaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scripts.common.files import atomic_path
from scripts.ukbb.archive import CHANNELS

_PX_PER_MM = 0.5
_MARGIN_PX, _TITLE_PX = 8, 18
_GAP, _SEAM, _TEXT = (150, 40, 40), (90, 160, 220), (235, 235, 235)


def write_montage(
    channels: np.ndarray,
    spacing_mm: Sequence[float],
    path: Path,
    *,
    title: str,
    gaps: Sequence[tuple[int, int]] = (),
    seams: Sequence[int] = (),
) -> None:
    """Draw the middle coronal plane of each contrast, and its sagittal plane, with the head up.

    The patient's right is on the left of coronal planes, the front on the left of sagittal ones.

    Args:
        channels: (4, X, Y, Z) towards right, front and head, in the order of `CHANNELS`.
        spacing_mm: voxel size.
        path: the PNG file.
        title: its headline.
        gaps: first and last slice of each gap, drawn in red.
        seams: slices in the middle of overlaps, marked at the edge in blue.
    """
    shown = np.flatnonzero(channels[2].sum(axis=(0, 2)))
    y = int(np.median(shown)) if shown.size else channels.shape[2] // 2
    x = channels.shape[1] // 2
    panels = []
    for name, channel in zip(CHANNELS, channels, strict=True):
        planes = {"coronal": (channel[:, y], spacing_mm[0]), "sagittal": (channel[x], spacing_mm[1])}
        high = max(float(np.percentile(channel[::2, ::2, ::2], 99.5)), 1e-6)
        panels += [
            (f"{name} {kind}", _panel(plane, high, mm, spacing_mm[2], gaps, seams))
            for kind, (plane, mm) in planes.items()
        ]
    width = sum(panel.width for _, panel in panels) + _MARGIN_PX * (len(panels) + 1)
    sheet = Image.new("RGB", (width, panels[0][1].height + 2 * _TITLE_PX + _MARGIN_PX))
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN_PX, 3), title, fill=_TEXT)
    left = _MARGIN_PX
    for name, panel in panels:
        draw.text((left, _TITLE_PX), name, fill=_TEXT)
        sheet.paste(panel, (left, 2 * _TITLE_PX))
        draw.text((left, 2 * _TITLE_PX + 2), "R" if "coronal" in name else "A", fill=_TEXT)
        left += panel.width + _MARGIN_PX
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _panel(
    plane: np.ndarray, high: float, mm: float, z_mm: float, gaps: Sequence[tuple[int, int]], seams: Sequence[int]
) -> Image.Image:
    """Draw a plane (A, Z) with the head up and the first axis running to the left."""
    gray = (np.clip(plane / high, 0, 1) * 255).astype(np.uint8)
    colored = np.repeat(gray[..., None], 3, axis=-1)
    for first, last in gaps:
        colored[:, first : last + 1] = _GAP
    for seam in seams:
        colored[-max(1, plane.shape[0] // 30) :, seam] = _SEAM
    picture = Image.fromarray(np.ascontiguousarray(colored[::-1, ::-1].transpose(1, 0, 2)))
    size = (max(1, round(plane.shape[0] * mm * _PX_PER_MM)), max(1, round(plane.shape[1] * z_mm * _PX_PER_MM)))
    return picture.resize(size, Image.Resampling.BILINEAR)
