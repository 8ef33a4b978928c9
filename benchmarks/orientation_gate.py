"""What `scripts.data.plausibility` finds: each image with its voxels permuted and flipped in all 48 ways.

`python -m benchmarks.orientation_gate`; the affine stays, as if a converter had lost the order of the axes.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.data.plausibility import intensity_kind, orientation_signs
from scripts.io.dicom import read_dicom_series
from tools.torso import DEFAULT_SPACING_MM, torso_phantom
from tools.ukbb_archives import body

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "orientation_gate.csv"
COLUMNS = ("image", "kind", "unchanged", "axes", "head_feet", "front_back", "left_right", "found", "of")
FLIPS = {"left_right": (0,), "front_back": (1,), "head_feet": (2,)}


def images() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, voxels and affine of real images, where they are, and of phantoms."""
    for name in ("ct_torso", "mr_torso"):
        if (SHARED / name).is_dir():
            image = nib.as_closest_canonical(nib.load(SHARED / name / "image.nii.gz"))
            yield name, np.asarray(image.dataobj), image.affine
    if (SHARED / "ct_dicom").is_dir():
        volume = read_dicom_series(SHARED / "ct_dicom")
        image = nib.as_closest_canonical(
            nib.Nifti1Image(volume.values()[::4, ::4], volume.affine @ np.diag([4, 4, 1, 1]))
        )
        yield "ct_dicom", np.asarray(image.dataobj), image.affine
    for seed in range(3):
        yield f"CT phantom {seed}", torso_phantom(np.random.default_rng(seed))[0], np.diag([*DEFAULT_SPACING_MM, 1.0])
    spacing_mm = np.array([8.9, 8.9, 12.0])
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip((56, 44), spacing_mm[:2], strict=True)]
    fat, water = body(np.stack(np.meshgrid(*axes, np.arange(-92, 1) * spacing_mm[2], indexing="ij")))
    noise = np.random.default_rng(0).normal(0, 8, fat.shape)
    yield "Dixon phantom", (fat + water + noise).clip(0), np.diag([*spacing_mm, 1.0])


def changed(voxels: np.ndarray, affine: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...]) -> list[str]:
    """Return the signs in an image whose axes are permuted and flipped while the directions of the affine stay."""
    sizes_mm = np.linalg.norm(affine[:3, :3], axis=0)[list(order)]
    return orientation_signs(np.flip(voxels.transpose(order), flips), np.diag([*sizes_mm, 1.0]))


def measure(name: str, voxels: np.ndarray, affine: np.ndarray) -> dict[str, object]:
    """Return a row of the table: warnings for each single flip, and how many of the 47 changes are found."""
    unchanged = (0, 1, 2)
    row: dict[str, object] = {"image": name, "kind": intensity_kind(voxels)}
    row["unchanged"] = "warned" if changed(voxels, affine, unchanged, ()) else "silent"
    for column, flips in FLIPS.items():
        row[column] = "found" if changed(voxels, affine, unchanged, flips) else "not found"
    all_flips = [tuple(np.flatnonzero(on).tolist()) for on in product((False, True), repeat=3)]
    permuted = [
        bool(changed(voxels, affine, p, f)) for p in permutations(range(3)) if p != unchanged for f in all_flips
    ]
    kept = [bool(changed(voxels, affine, unchanged, flips)) for flips in all_flips if flips]
    row["axes"] = f"{sum(permuted)} of {len(permuted)}"
    return {**row, "found": sum(permuted) + sum(kept), "of": len(permuted) + len(kept)}


def main() -> None:
    """Print the table and write it."""
    rows = [measure(*image) for image in images()]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        for stream in (file, sys.stdout):
            table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
