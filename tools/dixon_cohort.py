"""Phantoms in archives of UK Biobank's layout, and label maps with errors for the volumes that are made of them.

`python -m tools.dixon_cohort OUT --subjects 8`, then `python -m scripts.prepare_ukbb OUT/archives OUT`, then
`python -m tools.dixon_cohort OUT --labels`, in place of an automatic segmentation of `OUT/images`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to
from scipy.ndimage import map_coordinates

from scripts.common.files import write_table
from scripts.common.names import stem
from scripts.common.organs import ORGANS
from tools.label_cohort import make_subject, write_nifti
from tools.ukbb_archives import Intensities, flat, lay_out, whole_body, write_archive

LAYOUT = lay_out(96, (64, 66, 66, 66, 62, 60), (30,) * 6, (6,) * 6, 5.0)
"""Stations of 5 x 5 x 6 mm, which together are as long as the phantoms."""
MAPS = ("labels", "truth")
_BONE = ("rib", "sacrum", "humerus", "scapula", "clavicula", "femur", "hip", "sternum", "vertebra", "bone_other")
_NOISE = 12.0


def fat_and_water() -> np.ndarray:
    """Return fat and water of each label, (2, 1 + labels): plausible, and different for neighbouring organs."""
    values = np.zeros((2, max(ORGANS) + 1))
    for label, name in ORGANS.items():
        if "fat" in name:
            values[:, label] = 600, 60
        elif name.startswith("lung") or name == "trachea":
            values[:, label] = 8, 20
        elif name.startswith(_BONE):
            values[:, label] = 220, 130
        else:
            values[:, label] = 30, 280 + 30 * (label * 7 % 11)
    return values


def intensities_of(label: np.ndarray, affine: np.ndarray, seed: int) -> Intensities:
    """Return fat and water of a label map, with noise, at points in mm.

    Args:
        label: (X, Y, Z).
        affine: voxel index to mm, right, front and head.
        seed: of the noise.
    """
    inverse, values, rng = np.linalg.inv(affine), fat_and_water(), np.random.default_rng(seed)

    def intensities(points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices = np.tensordot(inverse[:3, :3], points_mm, axes=1) + inverse[:3, 3].reshape(3, *[1] * 3)
        found = map_coordinates(label, indices, order=0, mode="constant")
        noisy = values[:, found] + _NOISE * rng.standard_normal((2, *found.shape))
        fat, water = np.rint(np.abs(noisy))
        return fat, water

    return intensities


def write_cohort(out: Path, *, subjects: int, error_rate: float = 0.1, seed: int = 0) -> None:
    """Write `archives`, in `phantoms` the label map of each body, with errors and without, and `errors.csv`.

    Args:
        out: folder of the cohort.
        subjects: number of people.
        error_rate: see `tools.label_errors.inject_errors`.
        seed: the same seed gives the same cohort.
    """
    rows = []
    for index in range(subjects):
        person = make_subject(seed, index, error_rate=error_rate)
        corners = nib.affines.apply_affine(person.affine, np.argwhere(person.clean))
        affine = nib.affines.from_matvec(np.eye(3), [0, 0, -corners[:, 2].max()]) @ person.affine
        subject = str(1000001 + index)
        rows += [(f"{subject}_2_0", label, kind) for label, kind in person.errors]
        for name, label in zip(MAPS, (person.corrupted, person.clean), strict=True):
            write_nifti(label, affine, out / "phantoms" / name / f"{subject}_2_0.nii.gz")
        stations = whole_body(subject, LAYOUT, intensities=intensities_of(person.clean, affine, index))
        write_archive(out / "archives" / f"{subject}_20201_2_0.zip", flat(stations))
    write_table(pd.DataFrame(rows, columns=["case", "label", "kind"]), out / "errors.csv")


def write_labels(out: Path) -> None:
    """Write `labels`, with errors, and `truth` on the grids of `images`."""
    for path in sorted((out / "images").glob("*.nii.gz")):
        image = nib.load(path)
        grid = image.shape[:3], image.affine
        for name in MAPS:
            placed = resample_from_to(nib.load(out / "phantoms" / name / f"{stem(path)}.nii.gz"), grid, order=0)
            write_nifti(np.asarray(placed.dataobj).astype(np.uint8), image.affine, out / name / path.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.dixon_cohort", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the cohort")
    parser.add_argument("--subjects", type=int, default=8, help="number of people (default: 8)")
    parser.add_argument("--labels", action="store_true", help="write the label maps of the images in OUT/images")
    args = parser.parse_args(argv)
    if args.labels:
        write_labels(args.out)
    else:
        write_cohort(args.out, subjects=args.subjects)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
