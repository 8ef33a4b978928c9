"""Errors of an automatic segmentation, injected into a correct label map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS, contralateral_labels
from scripts.solf.evaluation import label_dice
from tools.label_anatomy import TISSUES

WRONG_BELOW_DICE = 0.9
"""A label is wrong if its Dice with the correct label is lower, whether by its own error or by that of another."""

OVERWRITTEN = "overwritten"
MIN_VOXELS = 8  # of a label that gets an error
NEAREST = 5  # organs with which one may be confused

CONTRALATERAL = contralateral_labels(ORGANS)


def inject_errors(
    clean: np.ndarray, *, rate: float, rng: np.random.Generator, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Inject errors into a label map.

    Every organ but skin, muscle and inner fat gets an error with the probability `rate`. All kinds are equally likely;
    `swapped` requires a contralateral organ. Voxels that a label loses become background, voxels that it gains are
    taken from its neighbours.

    Args:
        clean: correct labels, ids of `ORGANS`; not changed.
        rate: 0 to 1. Exchanges affect two labels, so the share of wrong labels is slightly higher.
        rng: source of randomness.
        spacing_mm: voxel size, (3,).

    Returns:
        The corrupted map, and (label, kind) of each of its labels whose Dice with the correct one is below 0.9,
        ascending. Kinds are those of `KINDS`, and `overwritten` for a label that lost voxels to another's error. A
        label that vanished is not listed, because the map no longer has it.

    Shape:
        clean: (X, Y, Z).

    Raises:
        InputError: rate is not within 0 to 1.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"the error rate is {rate}: give 0 to 1.")
    counts = np.bincount(clean.ravel(), minlength=max(ORGANS) + 1)
    intact = [label for label in ORGANS if label not in TISSUES and counts[label] >= MIN_VOXELS]
    corrupted, kind_of = clean.copy(), dict[int, str]()
    for label in [label for label in intact if rng.random() < rate]:
        if label in kind_of or np.count_nonzero(corrupted == label) < MIN_VOXELS:
            continue
        kinds = [kind for kind in KINDS if kind != "swapped" or CONTRALATERAL.get(label) in intact]
        kind = str(rng.choice(kinds))
        affected = corrupt_label(corrupted, label, kind, rng=rng, spacing_mm=spacing_mm, others=intact)
        kind_of |= dict.fromkeys(affected, kind)
        intact = [label for label in intact if label not in affected]
    dice, present = label_dice(corrupted, clean), set(np.unique(corrupted))
    wrong = [label for label in dice if dice[label] < WRONG_BELOW_DICE and label in present]
    return corrupted, [(label, kind_of.get(label, OVERWRITTEN)) for label in wrong]


def corrupt_label(
    label: np.ndarray,
    value: int,
    kind: str,
    *,
    rng: np.random.Generator,
    spacing_mm: Sequence[float],
    others: Sequence[int],
) -> tuple[int, ...]:
    """Inject an error into one label of a map, in place.

    Args:
        label: ids of `ORGANS`.
        value: the label that gets the error.
        kind: one of `KINDS`.
        rng: source of randomness.
        spacing_mm: voxel size, (3,).
        others: labels that it may be exchanged with.

    Returns:
        The affected labels: two for exchanges.

    Shape:
        label: (X, Y, Z).
    """
    spacing = np.asarray(spacing_mm, dtype=float)
    if kind == "swapped":
        return _exchange(label, value, CONTRALATERAL[value])
    if kind == "wrong organ":
        near = _nearest(label, value, spacing, [k for k in others if k not in (value, CONTRALATERAL.get(value))])
        return _exchange(label, value, int(rng.choice(near))) if near else ()
    KINDS[kind](label, value, rng, spacing)
    return (value,)


def _half(label: np.ndarray, value: int, rng: np.random.Generator, spacing_mm: np.ndarray) -> None:
    """Cut off 40 to 60 % by a plane, mostly across the longest axis."""
    points_mm = np.argwhere(label == value) * spacing_mm
    axis = np.linalg.eigh(np.cov(points_mm.T))[1][:, 2]
    _keep(label, value, points_mm @ (rng.choice([-1, 1]) * axis + 0.3 * _direction(rng)), rng.uniform(0.4, 0.6))


def _leak(label: np.ndarray, value: int, rng: np.random.Generator, spacing_mm: np.ndarray) -> None:
    """Bulge into one neighbour by 35 to 100 % of the label's volume."""
    mask = label == value
    box = _box(mask)
    near = label[box][ndimage.binary_dilation(mask[box])]
    touching = np.bincount(near[(near > 0) & (near != value)], minlength=1)
    if touching.any():
        neighbour = rng.choice(len(touching), p=touching / touching.sum())
        seam = np.argwhere(ndimage.binary_dilation(mask[box]) & (label[box] == neighbour))
        start = rng.choice(seam) + [part.start for part in box]
        _bulge(label, value, start, label == neighbour, round(rng.uniform(0.35, 1) * mask.sum()), spacing_mm)


def _fragments(label: np.ndarray, value: int, rng: np.random.Generator, spacing_mm: np.ndarray) -> None:
    """Keep 40 to 65 % in patches, and add two to four islands of 3 to 8 % each anywhere in the body."""
    mask = label == value
    box, voxels = _box(mask), int(mask.sum())
    patch_mm = 0.15 * np.cbrt(voxels * spacing_mm.prod())
    noise = ndimage.gaussian_filter(rng.standard_normal(mask[box].shape), patch_mm / spacing_mm)
    _keep(label, value, noise[mask[box]], rng.uniform(0.4, 0.65))
    body = np.flatnonzero(label)
    for _ in range(rng.integers(2, 5)):
        start, size = np.array(np.unravel_index(rng.choice(body), label.shape)), rng.uniform(0.03, 0.08) * voxels
        reach = 3 + int(np.cbrt(size))
        corner = np.maximum(start - reach, 0)
        near = label[tuple(slice(low, high) for low, high in zip(corner, start + reach + 1, strict=True))]
        _bulge(near, value, start - corner, (near > 0) & (near != value), max(1, round(size)), spacing_mm)


def _shifted(label: np.ndarray, value: int, rng: np.random.Generator, spacing_mm: np.ndarray) -> None:
    """Move it in a random direction until at most 20 to 80 % of it overlaps its old position."""
    mask, direction, most = label == value, _direction(rng), rng.uniform(0.2, 0.8)
    voxels = np.argwhere(mask)
    for distance_mm in range(3, 200, 3):
        moved = voxels + np.rint(distance_mm * direction / spacing_mm).astype(int)
        moved = tuple(moved[((moved >= 0) & (moved < label.shape)).all(axis=1)].T)
        if mask[moved].sum() <= most * len(voxels):
            break
    label[mask] = 0
    label[moved] = value


def _eroded(label: np.ndarray, value: int, rng: np.random.Generator, spacing_mm: np.ndarray) -> None:
    """Remove the surface, more on one side, until 40 to 75 % is left."""
    mask = label == value
    inner = mask[_box(mask)]
    depth_mm = ndimage.distance_transform_edt(np.pad(inner, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    _keep(label, value, (depth_mm + _slope(inner.shape, rng, spacing_mm))[inner], rng.uniform(0.4, 0.75))


def _dilated(label: np.ndarray, value: int, rng: np.random.Generator, spacing_mm: np.ndarray) -> None:
    """Grow on all sides within the body, more on one, by 35 to 100 % of the label's volume."""
    mask = label == value
    box = _box(mask, margin=8)
    distance_mm = ndimage.distance_transform_edt(~mask[box], sampling=spacing_mm)
    distance_mm += _slope(distance_mm.shape, rng, spacing_mm)
    allowed = (label[box] > 0) & ~mask[box]
    nearest = np.argsort(distance_mm[allowed], kind="stable")[: round(rng.uniform(0.35, 1) * mask.sum())]
    label[box][tuple(np.argwhere(allowed)[nearest].T)] = value


KINDS: dict[str, Callable[[np.ndarray, int, np.random.Generator, np.ndarray], None]] = {
    "missing half": _half,
    "leak": _leak,
    "fragments": _fragments,
    "swapped": lambda *_: None,  # `corrupt_label` exchanges labels
    "wrong organ": lambda *_: None,
    "shifted": _shifted,
    "eroded": _eroded,
    "dilated": _dilated,
}


def _exchange(label: np.ndarray, one: int, other: int) -> tuple[int, int]:
    masks = label == one, label == other
    label[masks[0]], label[masks[1]] = other, one
    return one, other


def _nearest(label: np.ndarray, value: int, spacing_mm: np.ndarray, others: Sequence[int]) -> list[int]:
    """Return the labels whose bounding boxes have the centres nearest to that of `value`."""
    boxes = ndimage.find_objects(label, max_label=max(ORGANS))
    middle_mm = {
        k: np.array([part.start + part.stop for part in boxes[k - 1]]) / 2 * spacing_mm
        for k in (value, *others)
        if boxes[k - 1]
    }
    present = [k for k in others if k in middle_mm]
    return sorted(present, key=lambda k: float(np.linalg.norm(middle_mm[k] - middle_mm[value])))[:NEAREST]


def _keep(label: np.ndarray, value: int, score: np.ndarray, share: float) -> None:
    """Keep the `share` of a label's voxels with the highest scores; scores are in the order of its voxels."""
    own = np.argwhere(label == value)
    lost = np.argsort(score, kind="stable")[: round(len(own) * (1 - share))]
    label[tuple(own[lost].T)] = 0


def _bulge(
    label: np.ndarray, value: int, start: np.ndarray, allowed: np.ndarray, voxels: int, spacing_mm: np.ndarray
) -> None:
    """Add the `allowed` voxels nearest to `start` to a label."""
    free = np.argwhere(allowed)
    distances = (((free - start) * spacing_mm) ** 2).sum(axis=1)
    voxels = min(voxels, len(free))
    label[tuple(free[np.argpartition(distances, voxels - 1)[:voxels]].T)] = value


def _box(mask: np.ndarray, *, margin: int = 1) -> tuple[slice, ...]:
    """Return the box of a mask with a margin, within the volume."""
    bounds = ndimage.find_objects(mask.view(np.uint8))[0]
    return tuple(slice(max(0, part.start - margin), part.stop + margin) for part in bounds)


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _slope(shape: Sequence[int], rng: np.random.Generator, spacing_mm: np.ndarray) -> np.ndarray:
    """Return a ramp in mm, about one voxel across a box, that orders voxels of equal distance by side."""
    direction = _direction(rng) * spacing_mm.mean() / max(shape)
    return sum(d * index for d, index in zip(direction, np.ogrid[tuple(slice(n) for n in shape)], strict=True))
