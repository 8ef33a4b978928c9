"""Writes small cases of four MR sequences."""

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
SHAPE = (25, 23, 19)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [5, -7, 9], degrees=True).as_matrix() @ np.diag([-1.0, 1.5, 2.0])
OBLIQUE[:3, 3] = 30, -20, 10
FINER = OBLIQUE @ np.diag([0.8, 0.9, 0.7, 1.0])
FINER[:3, 3] += 2, -3, 1
OTHER_GRIDS = {"t2w": ((30, 28, 26), FINER)}


def ball(points_mm, centre_mm):
    """A smooth bump in world coordinates, which any grid samples alike."""
    distance_mm = np.linalg.norm(points_mm - centre_mm, axis=-1)
    return np.where(distance_mm < 9, 100 * np.cos(distance_mm / 9 * np.pi / 2) ** 2, 0)


def sampled(shape, affine, factor):
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    centre_mm = nib.affines.apply_affine(OBLIQUE, [12, 11, 9])
    return (factor * ball(nib.affines.apply_affine(affine, indices), centre_mm)).astype(np.float32)


def write_case(folder, *, grids=None, names=None):
    """Write four sequences that show the same ball, of brightness 1 to 4; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for factor, kind in enumerate(SEQUENCES, start=1):
        shape, affine = (grids or {}).get(kind, (SHAPE, OBLIQUE))
        path = folder / (names or {}).get(kind, f"p1-{kind}.nii.gz")
        nib.save(nib.Nifti1Image(sampled(shape, affine, factor), affine), path)
        paths.append(str(path))
    return paths
