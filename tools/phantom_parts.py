"""What phantoms of any part of the body share: their grids and smooth warps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

INF = math.inf


def check_grid(shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    """Refuse impossible grids; see `tools.torso.torso_phantom`."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)} is not a grid; give three positive numbers of voxels")
    if len(spacing_mm) != 3 or not all(0 < s < INF for s in spacing_mm):
        raise ValueError(f"spacing_mm={tuple(spacing_mm)} is not a voxel size; give three positive numbers of mm")


def column(point: Sequence[float]) -> np.ndarray:
    """Return a point as (3, 1, 1, 1), to be added to points (3, X, Y, Z) or to divide them."""
    return np.reshape(point, (3, 1, 1, 1)).astype(np.float32)


def body_points(knots_mm: np.ndarray, shape: Sequence[int], field_mm: Sequence[float], size: float) -> np.ndarray:
    """Return for each voxel the point of the reference body that it shows, (3, *shape) in mm.

    Args:
        knots_mm: displacements (3, n, n, n) at the knots of a cubic B-spline over the field.
        shape: voxels along right, anterior, superior.
        field_mm: extent of the reference body's field of view, which the grid fills.
        size: of the body, relative to the reference.
    """
    unit = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij"))
    knots = unit * (knots_mm.shape[-1] - 1)
    # Without the prefilter the knots are spline coefficients: smoother than a curve through them.
    warp_mm = [ndimage.map_coordinates(k, knots, order=3, mode="nearest", prefilter=False) for k in knots_mm]
    return (unit - 0.5).astype(np.float32) * column(field_mm) / size + np.float32(warp_mm)
