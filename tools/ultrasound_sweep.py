"""A tracked sweep over a bone whose surface is known: pictures, `tracking.csv` and the distance from the surface.

The bone is a cylinder, which the probe follows from end to end while it tilts and turns a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from scripts.common.files import write_table
from scripts.ultrabones.tracking import POSE_COLUMNS, rigid
from tools.ultrasound_phantom import FIELD_MM, Outline, draw_label, render, write_gray

CALIBRATION = (20.0, -3.0, 90.0, 85.0, -5.0, 170.0)
"""Pose of the image relative to the tracked probe."""
LENGTH_MM = 80.0
RADIUS_MM = 14.0
STEEPEST_COSINE = 0.5
"""Of the angle between sound and surface, from which on its echo is seen."""


@dataclass(frozen=True)
class Cylinder:
    """A bone.

    Attributes:
        center_mm: a point of its axis, (3,).
        axis: its direction, (3,), of length 1.
    """

    center_mm: np.ndarray
    axis: np.ndarray

    def distances_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """Return how far points, (N, 3), are from the surface."""
        return np.abs(np.linalg.norm(self._across(points_mm - self.center_mm), axis=1) - RADIUS_MM)

    def outline(self, image_to_world: np.ndarray, width: int) -> Outline:
        """Return where the sound that leaves the upper edge of an image meets the surface."""
        x_mm = (np.arange(width) + 0.5) * FIELD_MM[1] / width
        starts = (image_to_world @ np.stack([x_mm, 0 * x_mm, 0 * x_mm, 1 + 0 * x_mm]))[:3].T
        start, sound = self._across(starts - self.center_mm), self._across(image_to_world[:3, 1][None])[0]
        a, b, c = sound @ sound, start @ sound, (start**2).sum(1) - RADIUS_MM**2
        with np.errstate(invalid="ignore"):
            depth_mm = (-b - np.sqrt(b**2 - a * c)) / a
        cosine = -(start + depth_mm[:, None] * sound) @ sound / RADIUS_MM
        return Outline(np.where((cosine >= STEEPEST_COSINE) & (depth_mm > 0), depth_mm, np.nan))

    def _across(self, vectors: np.ndarray) -> np.ndarray:
        return vectors - (vectors @ self.axis)[:, None] * self.axis


def write_sweep(out: Path, *, frames: int, size: tuple[int, int] = (205, 240), seed: int = 0) -> Cylinder:
    """Write `images`, `labels` and `tracking.csv`, and return the bone.

    Args:
        out: folder of all.
        frames: number of images.
        size: height and width of an image in pixels.
        seed: of everything that is random.
    """
    generator = np.random.default_rng(seed)
    turned = Rotation.random(random_state=seed)
    bone = Cylinder(generator.uniform(-50, 50, 3), turned.apply([0.0, 0.0, 1.0]))
    rows = []
    for frame, along_mm in enumerate(np.linspace(-LENGTH_MM / 2, LENGTH_MM / 2, frames)):
        tilt = Rotation.from_euler("xyz", generator.normal(0, 4, 3), degrees=True)
        start_mm = [-FIELD_MM[1] / 2 + generator.normal(0, 2), -RADIUS_MM - generator.uniform(10, 18), along_mm]
        image_to_world = np.eye(4)
        image_to_world[:3, :3] = (turned * tilt).as_matrix()
        image_to_world[:3, 3] = bone.center_mm + turned.apply(start_mm)
        outline, name = bone.outline(image_to_world, size[1]), f"{1000 + 50 * frame}"
        write_gray(render(outline, size[0], generator), out / "images" / f"{name}.png")
        write_gray(draw_label(outline, size[0]), out / "labels" / f"{name}.png")
        rows.append({"timestamp": name, "space_factor": 1, **_pose(image_to_world @ np.linalg.inv(rigid(CALIBRATION)))})
    write_table(pd.DataFrame(rows), out / "tracking.csv", decimals=9)
    return bone


def _pose(matrix: np.ndarray) -> dict[str, float]:
    angles = Rotation.from_matrix(matrix[:3, :3]).as_euler("xyz", degrees=True)
    return dict(zip(POSE_COLUMNS, [*matrix[:3, 3], *angles], strict=True))
