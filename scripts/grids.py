"""Where the voxels of a volume lie in the patient, and how two volumes differ in that."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import nibabel as nib
import numpy as np

CORNER_TOLERANCE_MM = 0.1


class Grid(NamedTuple):
    """Number of voxels along X, Y, Z, and the (4, 4) affine from voxel indices to mm in RAS."""

    shape: tuple[int, ...]
    affine: np.ndarray


def corners_mm(grid: Grid) -> np.ndarray:
    """Return the centres of the eight corner voxels, (8, 3)."""
    indices = list(product(*((0, size - 1) for size in grid.shape)))
    return nib.affines.apply_affine(np.asarray(grid.affine, dtype=np.float64), indices)


def differences(grid: Grid, reference: Grid) -> str:
    """Say how a grid differs from another, for a message.

    Args:
        grid: the one that should be the same.
        reference: what it is compared with.

    Returns:
        "" where shapes are equal and no corner is more than 0.1 mm off; else shape, spacing, turn and shift of the
        centre, as far as they differ.
    """
    if grid.shape == reference.shape:
        apart_mm = float(np.linalg.norm(corners_mm(grid) - corners_mm(reference), axis=1).max())
        if apart_mm <= CORNER_TOLERANCE_MM:
            return ""
    axes, spacings_mm = zip(*map(_axes, (grid, reference)), strict=True)
    found = []
    if grid.shape != reference.shape:
        found.append(f"shape {_listed(grid.shape)} instead of {_listed(reference.shape)}")
    if not np.allclose(*spacings_mm, rtol=0, atol=1e-3):
        found.append(f"spacing {_listed(spacings_mm[0])} instead of {_listed(spacings_mm[1])} mm")
    codes = ["".join(nib.aff2axcodes(each.affine)) for each in (grid, reference)]
    if codes[0] != codes[1]:
        found.append(f"axes {codes[0]} instead of {codes[1]}")
    elif (turn_deg := _turn_deg(*axes)) >= 0.05:
        found.append(f"turned by {turn_deg:.1f} degrees")
    shift_mm = np.linalg.norm(corners_mm(grid).mean(axis=0) - corners_mm(reference).mean(axis=0))
    if shift_mm > CORNER_TOLERANCE_MM or not found:
        found.append(f"centre {shift_mm:.1f} mm away")
    return ", ".join(found)


def _axes(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions of the voxel axes as columns, and the voxel size in mm along each."""
    matrix = np.asarray(grid.affine, dtype=np.float64)[:3, :3]
    spacing_mm = np.linalg.norm(matrix, axis=0)
    return matrix / spacing_mm, spacing_mm


def _turn_deg(axes: np.ndarray, other: np.ndarray) -> float:
    """Return the largest angle between axes of the same index."""
    return float(np.rad2deg(np.arccos(np.clip((axes * other).sum(axis=0), -1, 1))).max())


def _listed(values: tuple[float, ...] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
