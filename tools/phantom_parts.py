"""What phantoms of any part of the body share: their grids, their smooth warps, their files."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

ORIENTATIONS = ("LPS", "RAS", "PIR", "LAS", "ASL", "RPI", "SRP", "LIA")
INF = math.inf


def check_grid(shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    """Refuses what is no grid of voxels; see `tools.torso.torso_phantom`."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)} is no grid; give three positive numbers of voxels")
    if len(spacing_mm) != 3 or not all(0 < s < INF for s in spacing_mm):
        raise ValueError(f"spacing_mm={tuple(spacing_mm)} is no voxel size; give three positive mm")


def column(point: Sequence[float]) -> np.ndarray:
    """Returns a point as (3, 1, 1, 1), to be added to or divided by points (3, X, Y, Z)."""
    return np.reshape(point, (3, 1, 1, 1)).astype(np.float32)


def body_points(knots_mm: np.ndarray, shape: Sequence[int], field_mm: Sequence[float], size: float) -> np.ndarray:
    """Returns for each voxel the point of the reference body that it shows: (3, *shape) in mm.

    Args:
        knots_mm: (3, n, n, n) displacements at the knots of a cubic B-spline over the field.
        shape: voxels along right, anterior, superior.
        field_mm: extent of the reference body's field of view, which the grid fills.
        size: of the body, relative to the reference.
    """
    unit = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij"))
    knots = unit * (knots_mm.shape[-1] - 1)
    # Without the prefilter the knots are spline coefficients: smoother than a curve through them.
    warp_mm = [ndimage.map_coordinates(k, knots, order=3, mode="nearest", prefilter=False) for k in knots_mm]
    return (unit - 0.5).astype(np.float32) * column(field_mm) / size + np.float32(warp_mm)


def draw_affine(rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns the affine of a slightly tilted scan from RAS voxels to world mm."""
    axis = rng.standard_normal(3)
    angle_deg = rng.uniform(2, 8)
    rotation = Rotation.from_rotvec(angle_deg * axis / np.linalg.norm(axis), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(spacing_mm)
    affine[:3, 3] = rng.uniform(-60, 60, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def nifti_bytes(volume: np.ndarray, affine: np.ndarray, axcodes: str) -> bytes:
    """Returns a .nii.gz of a RAS volume stored along `axcodes`, each voxel kept at its world position."""
    wanted = nib.orientations.axcodes2ornt(axcodes)
    move = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), wanted)
    affine = affine @ nib.orientations.inv_ornt_aff(move, volume.shape)
    image = nib.Nifti1Image(nib.orientations.apply_orientation(volume, move), affine)
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    image.header.set_xyzt_units("mm")
    # nibabel would write the time of day into the gzip header.
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside the file, then renames: nobody finds half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
