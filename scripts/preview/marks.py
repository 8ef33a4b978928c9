"""Points and boxes that a user gave, drawn over slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from scripts.preview.rendering import Plane, Scene

AXES: dict[Plane, tuple[int, int, int]] = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
"""Of RAS volumes: the axis that runs to the left, the one that runs up, the one that is cut."""
_NEAR_SLICES, _FAINT = 1.0, 0.35
_HALO = [withStroke(linewidth=3.0, foreground="#000000")]


class Mark(NamedTuple):
    """What a user gave for a class, in voxels of the image.

    Attributes:
        class_id: of the class, whose colour it gets.
        points: (N, 3), drawn as circles.
        negative: (M, 3), drawn as crosses.
        box: (6,), least and largest voxel, or None.
    """

    class_id: int
    points: np.ndarray
    negative: np.ndarray
    box: np.ndarray | None


def to_ras_marks(marks: Sequence[Mark], affine: np.ndarray, shape: Sequence[int]) -> list[Mark]:
    """Return marks in voxels of the volume that `scripts.preview.rendering.to_ras` turns the image to."""
    turn = nib.orientations.inv_ornt_aff(nib.orientations.io_orientation(affine), shape)
    matrix = np.linalg.inv(turn)

    def turned(points: np.ndarray) -> np.ndarray:
        return nib.affines.apply_affine(matrix, np.asarray(points, dtype=np.float64).reshape(-1, 3))

    found = []
    for mark in marks:
        corners = None if mark.box is None else turned(mark.box)
        box = None if corners is None else np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        found.append(Mark(mark.class_id, turned(mark.points), turned(mark.negative), box))
    return found


def middle_of(marks: Sequence[Mark]) -> dict[Plane, int] | None:
    """Return the slices through the middle of the first mark that has a place, in RAS; None if none has."""
    for mark in marks:
        places = mark.points if mark.box is None else mark.box.reshape(2, 3)
        if len(places):
            middle = places.mean(axis=0).round().astype(int)
            return {plane: int(middle[cut]) for plane, (_, _, cut) in AXES.items()}
    return None


def draw_marks(axis: Axes, scene: Scene, marks: Sequence[Mark], plane: Plane, index: int) -> None:
    """Draw marks over a panel whose units are mm; what lies in other slices is faint.

    Args:
        axis: of the panel.
        scene: that the panel shows.
        marks: in RAS, see `to_ras_marks`.
        plane: which way it is cut.
        index: where.
    """
    left, up, cut = AXES[plane]
    size, mm = scene.image.shape, scene.spacing_mm
    for mark in marks:
        color = [part / 255 for part in scene.colors[mark.class_id]]
        for points, shape in ((mark.points, "o"), (mark.negative, "x")):
            for point in points:
                alpha = 1.0 if abs(point[cut] - index) <= _NEAR_SLICES else _FAINT
                place = (size[left] - 0.5 - point[left]) * mm[left], (point[up] + 0.5) * mm[up]
                style = {"markeredgecolor": "#ffffff", "markerfacecolor": color, "markeredgewidth": 1.5}
                axis.plot(*place, marker=shape, markersize=7, alpha=alpha, path_effects=_HALO, **style)
        if mark.box is not None:
            low, high = mark.box[:3], mark.box[3:]
            alpha = 1.0 if low[cut] <= index <= high[cut] else _FAINT
            corner = (size[left] - 1 - high[left]) * mm[left], low[up] * mm[up]
            extent = [(high[a] - low[a] + 1) * mm[a] for a in (left, up)]
            style = {"edgecolor": color, "linewidth": 1.5, "linestyle": "--", "alpha": alpha}
            axis.add_patch(Rectangle(corner, *extent, fill=False, path_effects=_HALO, **style))
