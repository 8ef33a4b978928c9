"""Make a cohort of brain phantoms with tumours: `python -m tools.brain_phantom OUT --cases 6 --seed 0`.

Each case is a skull-stripped head in four MR sequences with a label map of BraTS 2023: necrotic core within an
enhancing rim within edema. They show that the code works, not how well a network segments patients.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from scripts.brats.sequences import SEQUENCES
from scripts.data.folds import assign_folds
from tools.phantom_cohort import run_command, write_datalist, write_volumes
from tools.phantom_parts import body_points, check_grid, column

DEFAULT_SHAPE = (80, 96, 72)
DEFAULT_SPACING_MM = (2.0, 2.0, 2.0)
REFERENCE_FIELD_MM = (160.0, 192.0, 144.0)
BRAIN_MM = (66.0, 82.0, 58.0)  # radii
VENTRICLES_MM = (((10, -2, 6), (6, 26, 9)), ((-10, -2, 6), (6, 26, 9)))  # centre and radii
FOLDED_MM = 7.0  # thickness of the grey matter


class Tissue(NamedTuple):
    """Its label, and its mean intensity in t1n, t1c, t2w and t2f in arbitrary units."""

    label: int
    means: tuple[float, float, float, float]


TISSUES = {
    "air": Tissue(0, (0, 0, 0, 0)),
    "fluid": Tissue(0, (190, 190, 900, 120)),
    "grey matter": Tissue(0, (480, 500, 520, 560)),
    "white matter": Tissue(0, (620, 640, 380, 440)),
    "edema": Tissue(2, (430, 440, 690, 860)),
    "enhancing tumour": Tissue(3, (430, 1050, 560, 700)),
    "necrotic core": Tissue(1, (300, 310, 780, 420)),
}
CODES = {name: code for code, name in enumerate(TISSUES)}
TEXTURE = 25.0  # standard deviation within a tissue


class Tumour(NamedTuple):
    """One lesion: centre and radii of its necrotic core, rim and edema in mm, and the roughness of its borders."""

    centre_mm: np.ndarray
    core_mm: float
    rim_mm: float
    edema_mm: float
    roughness: np.ndarray  # (2, 7, 7, 7) factors at the knots of smooth fields, for the core with its rim and the edema


def brain_phantom(
    rng: np.random.Generator,
    shape: Sequence[int] = DEFAULT_SHAPE,
    spacing_mm: Sequence[float] = DEFAULT_SPACING_MM,
) -> tuple[np.ndarray, np.ndarray]:
    """Make one phantom on a grid whose axes run to the patient's right, front and head (RAS).

    The head fills the field of view `shape * spacing_mm`: adult size at about 160 x 192 x 144 mm.

    Args:
        rng: source of randomness.
        shape: voxels along right, anterior, superior.
        spacing_mm: voxel size along the same axes, in mm.

    Returns:
        The sequences t1n, t1c, t2w and t2f (4, *shape), int16 and 0 outside the brain, and the label (*shape), uint8:
        1 necrotic core, 2 edema, 3 enhancing.

    Raises:
        ValueError: shape or spacing_mm is not three positive numbers, or the grid is too coarse for a tumour.
    """
    check_grid(shape, spacing_mm)
    points = body_points(rng.normal(0, 6, (3, 6, 6, 6)), shape, REFERENCE_FIELD_MM, rng.uniform(0.92, 1.04))
    codes = _paint_brain(points)
    for tumour in [_draw_tumour(rng) for _ in range(1 + int(rng.random() < 0.3))]:
        _paint_tumour(codes, points, tumour)
    label = np.array([tissue.label for tissue in TISSUES.values()], np.uint8)[codes]
    if missing := sorted({1, 2, 3} - set(np.unique(label).tolist())):
        raise ValueError(f"shape={tuple(shape)} leaves no voxel of the labels {missing}; give more and smaller voxels")
    return np.stack([_acquire(rng, codes, channel, spacing_mm) for channel in range(len(SEQUENCES))]), label


def write_cohort(
    out_dir: str | Path,
    *,
    cases: int = 6,
    seed: int = 0,
    shape: Sequence[int] = DEFAULT_SHAPE,
    spacing_mm: Sequence[float] = DEFAULT_SPACING_MM,
) -> Path:
    """Write a data set in the layout of BraTS 2023, with folds; the last case, with its label, is the test case.

    Args:
        out_dir: folder to write; made if absent.
        cases: number of patients, at least 3.
        seed: not negative; the same seed gives the same bytes.
        shape: voxels along right, anterior, superior, before a case's stored orientation permutes them.
        spacing_mm: voxel size along the same axes, in mm.

    Returns:
        The path of dataset_0.json, with five folds or as many as there are training cases.

    Raises:
        ValueError: cases, seed, shape or spacing_mm is out of range.
    """
    out, patients = Path(out_dir), [f"BraTS-GLI-{index:05d}" for index in range(cases)]
    files = [{kind: f"{name}-000/{name}-000-{kind}.nii.gz" for kind in (*SEQUENCES, "seg")} for name in patients]
    write_volumes(out, files, _draw_volumes, seed=seed, shape=shape, spacing_mm=spacing_mm)
    items = [
        {"image": [paths[kind] for kind in SEQUENCES], "label": paths["seg"], "patient": name}
        for name, paths in zip(patients, files, strict=True)
    ]
    fold_of = assign_folds(patients[:-1], folds=min(5, cases - 1), seed=seed)
    content = {
        "name": "brain phantoms",
        "description": f"Synthetic brains with tumours from tools/brain_phantom.py, seed {seed}; no patients",
        "training": [{**item, "fold": fold_of[item["patient"]]} for item in items[:-1]],
        "test": items[-1:],
    }
    return write_datalist(out, content)


def _draw_volumes(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[np.ndarray, ...]:
    images, label = brain_phantom(rng, shape, spacing_mm)
    return *images, label


def _paint_brain(points: np.ndarray) -> np.ndarray:
    """Return the tissue code of each voxel of a healthy brain."""
    depth = np.sqrt(((points / column(BRAIN_MM)) ** 2).sum(axis=0))
    codes = np.full(depth.shape, CODES["air"], np.uint8)
    codes[depth < 1] = CODES["fluid"]
    codes[depth < 0.97] = CODES["grey matter"]
    folds = 0.05 * np.sin(points[0] / 5) * np.sin(points[1] / 6) * np.sin(points[2] / 5.5)
    codes[depth < 1 - FOLDED_MM / min(BRAIN_MM) + folds] = CODES["white matter"]
    right, _, superior = points
    fissure = (np.abs(right) < 1.8) & (superior > 14) & (depth < 1)
    codes[fissure] = CODES["fluid"]
    for centre_mm, radii_mm in VENTRICLES_MM:
        codes[(((points - column(centre_mm)) / column(radii_mm)) ** 2).sum(axis=0) < 1] = CODES["fluid"]
    return codes


def _draw_tumour(rng: np.random.Generator) -> Tumour:
    direction = rng.normal(size=3)
    centre_mm = direction / np.linalg.norm(direction) * np.array(BRAIN_MM) * rng.uniform(0.35, 0.6)
    core_mm = rng.uniform(6, 13)
    rim_mm = core_mm + rng.uniform(4, 8)
    return Tumour(centre_mm, core_mm, rim_mm, rim_mm + rng.uniform(7, 16), rng.normal(1, 0.18, (2, 7, 7, 7)))


def _paint_tumour(codes: np.ndarray, points: np.ndarray, tumour: Tumour) -> None:
    """Paint edema, rim and core, from the outside in; edema spares fluid, and all stay within the brain."""
    distance_mm = np.sqrt(((points - column(tumour.centre_mm)) ** 2).sum(axis=0))
    knots = (points / 60 + 1) * 3
    inner, outer = (
        np.clip(ndimage.map_coordinates(field, knots, order=3, mode="nearest", prefilter=False), 0.6, 1.4)
        for field in tumour.roughness
    )
    brain, solid = codes != CODES["air"], codes != CODES["fluid"]
    codes[(distance_mm < tumour.edema_mm * outer) & brain & solid] = CODES["edema"]
    codes[(distance_mm < tumour.rim_mm * inner) & brain] = CODES["enhancing tumour"]
    codes[(distance_mm < tumour.core_mm * inner) & brain] = CODES["necrotic core"]


def _acquire(rng: np.random.Generator, codes: np.ndarray, channel: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return one sequence of a tissue map, with texture, partial volume, coil shading, noise and arbitrary gain."""
    means = np.array([tissue.means[channel] for tissue in TISSUES.values()])
    texture = ndimage.gaussian_filter(rng.standard_normal(codes.shape), 3.0 / np.array(spacing_mm))
    image = means[codes] + TEXTURE * texture / texture.std()
    image = ndimage.gaussian_filter(image, 0.8 / np.array(spacing_mm), mode="nearest")
    unit = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in codes.shape), indexing="ij"))
    image *= 1 + 0.12 * np.tensordot(rng.uniform(-1, 1, 3), unit, axes=1)
    image += rng.normal(0, rng.uniform(15, 25), codes.shape)
    image *= rng.uniform(0.6, 1.6)
    return np.where(codes == CODES["air"], 0, np.clip(np.rint(image), 1, 32767)).astype(np.int16)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(write_cohort, argv, doc=__doc__, shape=DEFAULT_SHAPE, spacing_mm=DEFAULT_SPACING_MM)


if __name__ == "__main__":
    sys.exit(main())
