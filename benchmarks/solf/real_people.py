"""People of real shape: two real label maps, each warped into many people by smooth random deformations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MIN_VOXELS = 30  # smaller labels are left out of the real map: warped, they vanish at random

_SIZE, _PROPORTION = 0.06, 0.03  # standard deviations of the logarithms of size and of its three parts
_TURN_DEGREES, _PLACE_MM = 3.0, 8.0
_WAVES = ((90.0, 6.0), (35.0, 2.5))  # mm between nodes, and standard deviation of their shifts


class Atlas(NamedTuple):
    """A real label map.

    Attributes:
        label: (X, Y, Z), uint8.
        affine: (4, 4), voxel indices to mm.
        organs: label id to name.
        scale: of its deformations: 1 for a torso, less for a smaller body.
    """

    label: np.ndarray
    affine: np.ndarray
    organs: Mapping[int, str]
    scale: float


@cache
def torso() -> Atlas:
    """Read an abdominal and pelvic CT's labels, 3 mm."""
    image = nib.load(DATA / "ct_torso" / "label_totalsegmentator.nii.gz")
    names = json.loads((DATA / "ct_torso" / "totalsegmentator_ct_classes.json").read_text())
    organs = {int(label): name for label, name in names.items() if int(label)}
    return Atlas(_large(np.asarray(image.dataobj)), image.affine, dict(sorted(organs.items())), 1.0)


@cache
def brain() -> Atlas:
    """Read a parcellation of the brain at half its resolution, 2 mm."""
    image = nib.load(DATA / "brain_parcellation" / "label.nii.gz").slicer[::2, ::2, ::2]
    label = _large(np.asarray(image.dataobj))
    return Atlas(label, image.affine, {int(k): f"structure {k}" for k in np.unique(label) if k}, 0.45)


ATLASES: dict[str, Callable[[], Atlas]] = {"torso": torso, "brain": brain}


def draw_person(atlas: Atlas, rng: np.random.Generator) -> np.ndarray:
    """Warp a label map on its own grid: size, proportions, turn and place of the body, and smooth random shifts.

    Returns:
        Labels, of the shape of the atlas; the field of view stays and cuts each person elsewhere.
    """
    shape = np.array(atlas.label.shape)
    spacing_mm = np.linalg.norm(atlas.affine[:3, :3], axis=0)
    turn = Rotation.from_rotvec(np.radians(rng.normal(0, _TURN_DEGREES, 3))).as_matrix()
    sizes = np.exp(rng.normal(0, _SIZE) + rng.normal(0, _PROPORTION, 3))
    middle_mm = (shape - 1) / 2 * spacing_mm
    place_mm = rng.normal(0, _PLACE_MM * atlas.scale, 3)
    axes_mm = [np.arange(n) * step for n, step in zip(shape, spacing_mm, strict=True)]
    points_mm = np.stack(np.meshgrid(*axes_mm, indexing="ij"), axis=-1) - middle_mm
    source_mm = points_mm @ (turn / sizes) + middle_mm + place_mm
    for nodes_mm, shift_mm in _WAVES:
        source_mm += _wave(axes_mm, nodes_mm * atlas.scale, shift_mm * atlas.scale, rng)
    index = np.rint(source_mm / spacing_mm).astype(np.int32)
    inside = ((index >= 0) & (index < shape)).all(axis=-1)
    label = np.zeros_like(atlas.label)
    label[inside] = atlas.label[tuple(index[inside].T)]
    return label


def _wave(axes_mm: list[np.ndarray], nodes_mm: float, shift_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Return shifts, (X, Y, Z, 3), as a cubic spline through random ones at nodes."""
    bases = []
    for axis_mm in axes_mm:
        count = max(4, round(axis_mm[-1] / nodes_mm) + 1)
        nodes = np.linspace(0, axis_mm[-1], count)
        bases.append(make_interp_spline(nodes, np.eye(count))(axis_mm))
    shifts = rng.normal(0, shift_mm, (*(base.shape[1] for base in bases), 3))
    for axis, base in enumerate(bases):
        shifts = np.moveaxis(np.tensordot(base, shifts, axes=(1, axis)), 0, axis)
    return shifts


def _large(label: np.ndarray) -> np.ndarray:
    """Return a map without the labels of less than `MIN_VOXELS`."""
    counts = np.bincount(label.ravel())
    return np.where(counts[label] >= MIN_VOXELS, label, 0).astype(np.uint8)
