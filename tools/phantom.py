"""Makes a small cohort of CT torso phantoms: `python -m tools.phantom OUT --cases 6 --seed 0`.

The phantoms stand in for patients in the demo and in the workflow tests: thirteen abdominal organs in BTCV
numbering at plausible places, sizes and portal-venous HU. They show that the machinery works, never how well
a network segments patients.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.phantom_parts import ORIENTATIONS, check_grid, draw_affine, nifti_bytes, write_atomically
from tools.torso import DEFAULT_SHAPE, DEFAULT_SPACING_MM, ORGANS, TISSUES, torso_phantom

logger = logging.getLogger(__name__)

MIN_CASES = 3  # one each for training, validation and test


def write_cohort(
    out_dir: str | Path,
    *,
    cases: int = 6,
    seed: int = 0,
    shape: Sequence[int] = DEFAULT_SHAPE,
    spacing_mm: Sequence[float] = DEFAULT_SPACING_MM,
) -> Path:
    """Writes a Decathlon-style data set: the last case for test, the one before for validation.

    Args:
        out_dir: folder to write; made if absent.
        cases: number of patients, at least 3.
        seed: not negative; the same seed gives the same bytes.
        shape: voxels along right, anterior, superior, before a case's stored orientation permutes them.
        spacing_mm: voxel size along the same axes, in mm.

    Returns:
        The path of dataset_0.json.

    Raises:
        ValueError: cases, seed, shape or spacing_mm is out of range.
    """
    if cases < MIN_CASES:
        raise ValueError(f"cases={cases} leaves a split empty; give at least {MIN_CASES}")
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; give 0 or more")
    check_grid(shape, spacing_mm)
    splits: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for index in range(cases):
        split = {cases - 1: "test", cases - 2: "validation"}.get(index, "training")
        # Seeded by (seed, index): a larger cohort begins with the smaller one's patients.
        rng = np.random.default_rng([seed, index])
        affine = draw_affine(rng, shape, spacing_mm)
        volumes = dict(zip(("image", "label"), torso_phantom(rng, shape, spacing_mm), strict=True))
        splits[split].append(_write_case(Path(out_dir), index, split, volumes, affine))
    path = Path(out_dir, "dataset_0.json")
    write_atomically(path, json.dumps(_describe(seed) | splits, indent=2).encode() + b"\n")
    logger.info("wrote %d cases below %s", cases, out_dir)
    return path


def _write_case(
    out_dir: Path, index: int, split: str, volumes: dict[str, np.ndarray], affine: np.ndarray
) -> dict[str, str]:
    entry, name = {}, f"torso_{index:03d}.nii.gz"
    ends = ("Ts", "Tr") if split == "test" else ("Tr", "Ts")
    for key, volume in volumes.items():
        entry[key] = f"{key}s{ends[0]}/{name}"
        path = out_dir / entry[key]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, nifti_bytes(volume, affine, ORIENTATIONS[index % len(ORIENTATIONS)]))
        # A cohort of another size may have left this patient on the other side of the split.
        (out_dir / f"{key}s{ends[1]}" / name).unlink(missing_ok=True)
    return entry


def _describe(seed: int) -> dict[str, object]:
    return {
        "name": "torso phantoms",
        "description": f"Synthetic portal-venous CT torsos from tools/phantom.py, seed {seed}; no patients",
        "modality": {"0": "CT"},
        "labels": {"0": "background"} | {str(TISSUES[name].label): name for name in ORGANS},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.phantom", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the data set")
    parser.add_argument("--cases", type=int, default=6, help="number of patients (at least 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", type=int, nargs=3, default=DEFAULT_SHAPE, help="voxels, right front head")
    parser.add_argument("--spacing", type=float, nargs=3, default=DEFAULT_SPACING_MM, help="voxel size in mm")
    args = parser.parse_args(argv)
    path = write_cohort(args.out, cases=args.cases, seed=args.seed, shape=args.shape, spacing_mm=args.spacing)
    print(path)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    main()
