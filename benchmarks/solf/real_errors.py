"""Errors of label maps, by code that shares nothing with the phantoms' generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from benchmarks.solf.real_people import Atlas
from scripts.common.organs import contralateral_labels

WRONG_BELOW_DICE = 0.9
KINDS = ("missing", "swapped", "merged", "islands", "eroded", "shifted")
TRUNCATED_SHARE = 0.08  # of the people
_CUT = (0.1, 0.3)  # share of the slices that a truncated field of view lacks
_MIN_VOXELS = 12  # of a label that gets an error


class Damage(NamedTuple):
    """A label map with errors.

    Attributes:
        label: labels, cropped where the field of view is truncated.
        affine: (4, 4), voxel indices to mm.
        kinds: label to kind of error, of the labels whose Dice with the correct one is below 0.9; `missing` ones are
            those that the map lacks, other than by a truncated field of view; `overwritten` ones lost voxels to
            another's error.
        dice: label to Dice, of the labels of the map.
    """

    label: np.ndarray
    affine: np.ndarray
    kinds: dict[int, str]
    dice: dict[int, float]


def damage(clean: np.ndarray, atlas: Atlas, *, rate: float, rng: np.random.Generator) -> Damage:
    """Give each label an error with the probability `rate`, and truncate the field of view of some people.

    Args:
        clean: correct labels, not changed.
        atlas: what the person was warped from.
        rate: 0 for a map without any error.
        rng: source of randomness.

    Shape:
        clean: (X, Y, Z).
    """
    label, kinds = clean.copy(), dict[int, str]()
    pairs = contralateral_labels(atlas.organs)
    for value in rng.permutation(np.unique(clean)[1:]).tolist():
        if rng.random() >= rate or value in kinds or np.count_nonzero(label == value) < _MIN_VOXELS:
            continue
        kind = str(rng.choice(KINDS))
        for affected in _ERRORS[kind](label, value, rng, pairs):
            kinds[affected] = kind
    affine, cut = atlas.affine, ()
    if rate and rng.random() < TRUNCATED_SHARE:
        cut = _slices(clean.shape, atlas.affine, rng)
        affine = affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in cut]
    return _compared(label, clean, affine, cut, kinds)


def _compared(
    label: np.ndarray, clean: np.ndarray, affine: np.ndarray, cut: tuple[slice, ...], kinds: dict[int, str]
) -> Damage:
    seen = np.zeros_like(label)
    seen[cut] = label[cut]
    n = int(max(seen.max(), clean.max())) + 1
    own, true = np.bincount(seen.ravel(), minlength=n), np.bincount(clean.ravel(), minlength=n)
    both = np.bincount(clean[seen == clean], minlength=n)
    in_view = np.bincount(clean[cut].ravel(), minlength=n)
    dice = {int(k): float(2 * both[k] / (own[k] + true[k])) for k in np.flatnonzero(own) if k}
    rest = "truncated" if cut else "overwritten"
    wrong = {k: kinds.get(k, rest) for k, value in dice.items() if value < WRONG_BELOW_DICE}
    wrong |= {int(k): "missing" for k in np.flatnonzero((in_view >= _MIN_VOXELS) & (own == 0)) if k}
    return Damage(np.ascontiguousarray(label[cut]), affine, wrong, dice)


def _slices(shape: tuple[int, ...], affine: np.ndarray, rng: np.random.Generator) -> tuple[slice, ...]:
    """Return what a truncated field of view shows: it lacks slices at the patient's head or feet."""
    axis = int(np.argmax(np.abs(affine[2, :3])))
    lost = round(rng.uniform(*_CUT) * shape[axis])
    first = lost if rng.random() < 0.5 else 0
    return tuple(slice(first, first + n - lost) if k == axis else slice(0, n) for k, n in enumerate(shape))


def _missing(label: np.ndarray, value: int, *_: object) -> list[int]:
    label[label == value] = 0
    return [value]


def _swapped(label: np.ndarray, value: int, rng: np.random.Generator, pairs: dict[int, int]) -> list[int]:
    """Exchange a label with that of the other side or, if it has none, with one of a similar volume."""
    counts = np.bincount(label.ravel())
    other = pairs.get(value, 0)
    if not (0 < other < len(counts) and counts[other]):
        ratio = np.abs(np.log(np.maximum(counts, 1e-9) / counts[value]))
        ratio[[0, value]] = np.inf
        other = int(rng.choice(np.argsort(ratio)[:4]))
    mine, others = label == value, label == other
    label[mine], label[others] = other, value
    return [value, other]


def _merged(label: np.ndarray, value: int, rng: np.random.Generator, _: object) -> list[int]:
    """Take over a neighbour, mostly one that it encloses; the neighbour is then missing."""
    mine = label == value
    around = label[ndimage.binary_dilation(mine) & ~mine]
    touching = np.bincount(around[around > 0], minlength=1)
    if not touching.any():
        return []
    enclosed = touching / np.bincount(label.ravel())[: len(touching)].clip(min=1)
    neighbour = int(rng.choice(len(touching), p=enclosed / enclosed.sum()))
    label[label == neighbour] = value
    return [value, neighbour]


def _islands(label: np.ndarray, value: int, rng: np.random.Generator, _: object) -> list[int]:
    """Add two to six balls of 2 to 10 % of its volume each, anywhere in the box of all labels."""
    voxels = np.count_nonzero(label == value)
    box = np.array([(part.start, part.stop) for part in ndimage.find_objects((label > 0).view(np.uint8))[0]])
    grid = np.ogrid[tuple(slice(n) for n in label.shape)]
    for _ in range(rng.integers(2, 7)):
        centre = rng.integers(box[:, 0], box[:, 1])
        radius = np.cbrt(voxels * rng.uniform(0.02, 0.1) * 3 / (4 * np.pi))
        label[sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2] = value
    return [value]


def _eroded(label: np.ndarray, value: int, rng: np.random.Generator, _: object) -> list[int]:
    """Peel it to 35 to 70 % of its voxels."""
    part = ndimage.find_objects((label == value).view(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(label[part] == value, 1))[1:-1, 1:-1, 1:-1]
    depth += rng.uniform(0, 1e-3, depth.shape)
    mine = label[part] == value
    lost = mine & (depth < np.quantile(depth[mine], 1 - rng.uniform(0.35, 0.7)))
    label[part][lost] = 0
    return [value]


def _shifted(label: np.ndarray, value: int, rng: np.random.Generator, _: object) -> list[int]:
    """Move it by 30 to 100 % of its extent along each of the array's axes, in a random direction."""
    voxels = np.argwhere(label == value)
    extent = voxels.max(axis=0) - voxels.min(axis=0) + 1
    moved = voxels + np.rint(extent * rng.uniform(0.3, 1) * rng.choice([-1, 0, 1], 3)).astype(int)
    moved = moved[((moved >= 0) & (moved < label.shape)).all(axis=1)]
    label[tuple(voxels.T)] = 0
    label[tuple(moved.T)] = value
    return [value]


_ERRORS: dict[str, Callable[..., list[int]]] = {
    "missing": _missing,
    "swapped": _swapped,
    "merged": _merged,
    "islands": _islands,
    "eroded": _eroded,
    "shifted": _shifted,
}
