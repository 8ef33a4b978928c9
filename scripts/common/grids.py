"""Voxel grids: where voxels lie in the patient, and how two grids differ."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import nibabel as nib
import numpy as np

from scripts.common.errors import InputError

CORNER_TOLERANCE_MM = 0.1


class Grid(NamedTuple):
    """Number of voxels along X, Y, Z, and the (4, 4) affine from voxel indices to mm in RAS."""

    shape: tuple[int, ...]
    affine: np.ndarray


class GridArray(NamedTuple):
    """A volume (X, Y, Z) and the (4, 4) affine from its voxel indices to mm in RAS."""

    array: np.ndarray
    affine: np.ndarray

    @property
    def grid(self) -> Grid:
        """The grid that the voxels lie on."""
        return Grid(self.array.shape, self.affine)


def corners_mm(grid: Grid) -> np.ndarray:
    """Return the eight outer corners in mm, (8, 3); of a single slice they tell its thickness and direction."""
    indices = list(product(*((-0.5, size - 0.5) for size in grid.shape)))
    return nib.affines.apply_affine(np.asarray(grid.affine, dtype=np.float64), indices)


def inferior_superior_axis(affine: np.ndarray) -> int:
    """Return the axis of the voxels that is nearest to the patient's inferior-superior direction.

    >>> inferior_superior_axis(np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 1]]))
    1
    """
    return next(axis for axis, code in enumerate(nib.aff2axcodes(affine)) if code in ("S", "I"))


def scanned_slices(volume: GridArray) -> tuple[int, int]:
    """Return start and stop of the slices between the constant ones at the inferior and the superior face.

    Constant slices there fill up a volume where nothing was scanned. Along the other axes they may be air.

    >>> scanned_slices(GridArray(np.pad(np.arange(8.0).reshape(2, 2, 2), ((0, 0), (0, 0), (1, 3))), np.eye(4)))
    (1, 3)
    """
    slices = np.moveaxis(volume.array, inferior_superior_axis(volume.affine), 0)
    varied = (index for index in range(len(slices)) if np.ptp(slices[index]) > 0)
    start = next(varied, 0)
    return start, next((i for i in range(len(slices), start + 1, -1) if np.ptp(slices[i - 1]) > 0), start + 1)


def describe_mismatch(grid: Grid, reference: Grid) -> str:
    """Describe how a grid differs from another.

    Two grids are the same if their shapes are equal and no corner is more than 0.1 mm away. Comparing the entries of
    the affines would accept another voxel size: 0.78 mm instead of 0.70 mm moves the 512th voxel by 41 mm.

    Args:
        grid: the grid that should be the same.
        reference: the grid that it is compared with.

    Returns:
        "" if they are the same, else the differences in shape, spacing, direction and position.

    >>> shifted = np.eye(4)
    >>> shifted[0, 3] = 5
    >>> describe_mismatch(Grid((9, 9, 9), shifted), Grid((9, 9, 9), np.eye(4)))
    'centre 5.0 mm away'
    """
    shifts_mm = corners_mm(grid) - corners_mm(reference)
    distance_mm = np.linalg.norm(shifts_mm, axis=1).max()
    if grid.shape == reference.shape and distance_mm <= CORNER_TOLERANCE_MM:
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
    elif (angle_deg := _angle_deg(*axes)) >= 0.05:
        found.append(f"rotated by {angle_deg:.1f} degrees")
    centre_mm = np.linalg.norm(shifts_mm.mean(axis=0))
    if centre_mm > CORNER_TOLERANCE_MM:
        found.append(f"centre {centre_mm:.1f} mm away")
    return ", ".join(found) or f"corners up to {distance_mm:.1f} mm away"


def check_same_grid(pred: GridArray, other: GridArray, *, case: str, name: str = "label") -> None:
    """Refuse a prediction that does not lie on the grid of another volume of its case.

    Args:
        pred: the prediction.
        other: the volume that it is compared with.
        case: named in the message.
        name: what `other` is.

    Raises:
        InputError: see `describe_mismatch`.
    """
    if mismatch := describe_mismatch(other.grid, pred.grid):
        raise InputError(
            f"{case}: the {name} does not lie on the grid of the prediction: {mismatch}. Resample the {name} to this "
            "grid, or correct its header."
        )


def _axes(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions of the voxel axes as columns, and the voxel size in mm along each."""
    matrix = np.asarray(grid.affine, dtype=np.float64)[:3, :3]
    spacing_mm = np.linalg.norm(matrix, axis=0)
    return matrix / spacing_mm, spacing_mm


def _angle_deg(axes: np.ndarray, other: np.ndarray) -> float:
    """Return the largest angle between axes of the same index."""
    return float(np.rad2deg(np.arccos(np.clip((axes * other).sum(axis=0), -1, 1))).max())


def _listed(values: tuple[float, ...] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
