"""What cohorts of phantoms share: random numbers, NIfTI files, the datalist and the command line."""

from __future__ import annotations

import argparse
import gzip
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from scripts.common.files import atomic_path, write_json
from tools.phantom_parts import check_grid

ORIENTATIONS = ("LPS", "RAS", "PIR", "LAS", "ASL", "RPI", "SRP", "LIA")
"""Stored axes of the first case, the second and so on, over and over."""
MIN_CASES = 3
logger = logging.getLogger(__name__)

Phantom = Callable[[np.random.Generator, Sequence[int], Sequence[float]], tuple[np.ndarray, ...]]
"""Draws the volumes of a case on a RAS grid of a shape and spacing in mm, such as image and label."""


def write_volumes(
    out_dir: Path,
    files: Sequence[Mapping[str, str]],
    draw: Phantom,
    *,
    seed: int,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
) -> None:
    """Write the volumes of all cases, tilted and in varying orientations.

    Args:
        out_dir: folder to write; made if absent.
        files: of each case, kind of volume to path below `out_dir`, in the order in which `draw` returns the volumes.
        draw: returns the volumes of a case.
        seed: not negative; the same seed gives the same bytes.
        shape: voxels along right, anterior, superior, before a case's stored orientation permutes them.
        spacing_mm: voxel size along the same axes, in mm.

    Raises:
        ValueError: there are too few cases, or seed, shape or spacing_mm is out of range.
    """
    if len(files) < MIN_CASES:
        raise ValueError(f"cases={len(files)} is too few for training, validation and test; give at least {MIN_CASES}")
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; give 0 or more")
    check_grid(shape, spacing_mm)
    for index, paths in enumerate(files):
        # Seeded by (seed, index): a larger cohort begins with the patients of the smaller one.
        rng = np.random.default_rng([seed, index])
        affine = draw_affine(rng, shape, spacing_mm)
        axcodes = ORIENTATIONS[index % len(ORIENTATIONS)]
        for path, volume in zip(paths.values(), draw(rng, shape, spacing_mm), strict=True):
            with atomic_path(out_dir / path) as temporary:
                temporary.write_bytes(nifti_bytes(volume, affine, axcodes))


def write_datalist(out_dir: Path, content: Mapping[str, Any]) -> Path:
    """Write `dataset_0.json` below `out_dir` and return its path."""
    path = out_dir / "dataset_0.json"
    write_json(path, content)
    logger.info("wrote %d cases below %s", sum(len(v) for v in content.values() if isinstance(v, list)), out_dir)
    return path


def draw_affine(rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the affine of a slightly tilted scan, from RAS voxels to world mm."""
    axis = rng.standard_normal(3)
    angle_deg = rng.uniform(2, 8)
    rotation = Rotation.from_rotvec(angle_deg * axis / np.linalg.norm(axis), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(spacing_mm)
    affine[:3, 3] = rng.uniform(-60, 60, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def nifti_bytes(volume: np.ndarray, affine: np.ndarray, axcodes: str) -> bytes:
    """Return a .nii.gz of a RAS volume stored along `axcodes`; each voxel keeps its world position."""
    wanted = nib.orientations.axcodes2ornt(axcodes)
    move = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), wanted)
    affine = affine @ nib.orientations.inv_ornt_aff(move, volume.shape)
    image = nib.Nifti1Image(nib.orientations.apply_orientation(volume, move), affine)
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    image.header.set_xyzt_units("mm")
    # nibabel would write the time of day into the gzip header.
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def run_command(
    write_cohort: Callable[..., Path],
    argv: Sequence[str] | None,
    *,
    doc: str,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
) -> int:
    """Run the command line of a kind of phantom and print the path of the datalist.

    Args:
        write_cohort: of the module.
        argv: arguments; those of the process by default.
        doc: docstring of the module, whose first line describes the command.
        shape: default number of voxels.
        spacing_mm: default voxel size.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {write_cohort.__module__}", description=doc.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the data set")
    parser.add_argument("--cases", type=int, default=6, help=f"number of patients (at least {MIN_CASES})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", type=int, nargs=3, default=shape, help="voxels along right, anterior, superior")
    parser.add_argument("--spacing", type=float, nargs=3, default=spacing_mm, help="voxel size in mm")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = write_cohort(args.out, cases=args.cases, seed=args.seed, shape=args.shape, spacing_mm=args.spacing)
    sys.stdout.write(f"{path}\n")
    return 0
