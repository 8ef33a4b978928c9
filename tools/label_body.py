"""Whole-body label maps of phantom people: their anatomy, and how their organs are drawn.

They serve to test a label filter on known errors; organs of patients have other shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from scripts.common.organs import ORGANS
from tools.label_anatomy import ABSENT, FRAME, IDS, TISSUES, VISCERA, Organ

SHAPE = (88, 60, 140)
SPACING_MM = (5.0, 5.0, 6.0)
FIRST_MM = (-217.5, -147.5, -480.0)  # centre of the first voxel

RARE_PERCENT = 1.0  # of organs are twice or half as large as they would be
SURFACE_DEPTH = 0.08  # of bumps, in radii
OWN_SIZE = 0.3  # share of an organ's variation that is independent of the contralateral organ

_SKIN, _MUSCLE, _FAT = TISSUES
_HEIGHTS_MM = (-280, -200, -60, 60, 150, 250, 300, 325, 360)
_WIDTHS_MM = (166, 172, 140, 138, 150, 172, 150, 72, 62)  # half of them, without skin
_DEPTHS_MM = (98, 108, 96, 96, 108, 104, 84, 62, 60)
_LEGS_BELOW_MM = -280
_WALL_MM = 18


class Body(NamedTuple):
    """What the organs of one person share.

    Attributes:
        male: whether the person has a prostate.
        size: of the whole body, in standard deviations.
        scale: (3,), of places in the reference body.
        skin_mm: thickness of the subcutaneous fat at the trunk.
        wall: thickness of the muscles around the cavity, 1 in the reference body.
        breath_mm: shift of the diaphragm and the organs below it.
        start_mm: shift of the field of view, (3,).
        organs: by organ id, the variation that it shares with the contralateral organ, in standard deviations.
    """

    male: bool
    size: float
    scale: np.ndarray
    skin_mm: float
    wall: float
    breath_mm: float
    start_mm: np.ndarray
    organs: np.ndarray


class Pose(NamedTuple):
    """Where one organ lies, and how it is turned and stretched.

    Attributes:
        reference_mm: its middle in the reference body, (3,).
        centre_mm: its middle in the person, (3,).
        turn: rotation, (3, 3).
        along: (3,), stretch of its lines.
        across: (3,), stretch of its radii.
        waves: (3,), phases of the bumps on its surface.
    """

    reference_mm: np.ndarray
    centre_mm: np.ndarray
    turn: np.ndarray
    along: np.ndarray
    across: np.ndarray
    waves: np.ndarray


def draw_label_map(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make one person.

    Args:
        rng: source of randomness.

    Returns:
        The map, ids of `ORGANS`, whose sum is the body, (88, 60, 140) uint8; and the affine, (4, 4), voxel indices
        to mm. The person is rotated by about a degree.
    """
    body = draw_body(rng)
    axes_mm = [
        (first + start + step * np.arange(n)).astype(np.float32)
        for first, start, step, n in zip(FIRST_MM, body.start_mm, SPACING_MM, SHAPE, strict=True)
    ]
    label = _trunk(body, axes_mm, rng)
    for organ in FRAME:
        _draw_organ(label, axes_mm, organ, _draw_pose(organ, body, rng), label > 0)
    slices = (axes_mm[2] / body.scale[2]) % 34 < 9
    label[(label == IDS["vertebra_body"]) & slices] = IDS["IVD"]
    cavity = label == _FAT
    _lungs(label, axes_mm, body, rng)
    for organ in VISCERA:
        pose = _draw_pose(organ, body, rng)
        if not _is_absent(organ.name, body, rng):
            _draw_organ(label, axes_mm, organ, pose, cavity if organ.inside else label > 0)
    return label, _affine(body, rng)


def draw_body(rng: np.random.Generator) -> Body:
    """Draw the sex, height and build of a person."""
    male = bool(rng.random() < 0.5)
    size = 0.6 * (1 if male else -1) + 0.8 * rng.standard_normal()
    stoutness = rng.standard_normal()
    girth = np.exp(0.03 * size + 0.05 * stoutness)
    return Body(
        male=male,
        size=size,
        scale=np.array([girth, girth * np.exp(0.02 * rng.standard_normal()), np.exp(0.04 * size)]),
        skin_mm=(14 if male else 20) * np.exp(0.25 * stoutness + 0.15 * rng.standard_normal()),
        wall=np.exp(0.12 * size + 0.1 * rng.standard_normal()),
        breath_mm=8 * rng.standard_normal(),
        start_mm=np.array([4, 4, 12]) * rng.standard_normal(3),
        organs=rng.standard_normal(max(ORGANS) + 1),
    )


def _is_absent(name: str, body: Body, rng: np.random.Generator) -> bool:
    return bool(rng.random() < ABSENT.get(name, 0)) or (name == "prostate" and not body.male)


def _affine(body: Body, rng: np.random.Generator) -> np.ndarray:
    affine = np.eye(4)
    turn = Rotation.from_rotvec(0.7 * rng.standard_normal(3), degrees=True).as_matrix()
    affine[:3, :3] = turn * SPACING_MM
    affine[:3, 3] = turn @ (np.array(FIRST_MM) + body.start_mm) + 10 * rng.standard_normal(3)
    return affine


def _reference(axes_mm: Sequence[np.ndarray], body: Body) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the places in the reference body, (X, 1, 1), (Y, 1) and (Z,)."""
    x, y, z = (axis / scale for axis, scale in zip(axes_mm, body.scale, strict=True))
    return x[:, None, None], y[:, None], z


def _trunk(body: Body, axes_mm: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Draw skin, muscle and the fat of the cavity."""
    x, y, z = _reference(axes_mm, body)
    sway = 1 + 0.02 * np.sin(z / rng.uniform(60, 120) + rng.uniform(0, 6))
    width, depth = np.interp(z, _HEIGHTS_MM, _WIDTHS_MM) * sway, np.interp(z, _HEIGHTS_MM, _DEPTHS_MM) / sway
    leg_mm = 74 + np.clip((z + 480) / 25, 0, 10)
    label = np.zeros(SHAPE, dtype=np.uint8)
    for margin_mm, tissue in ((body.skin_mm / body.scale[0], _SKIN), (0, _MUSCLE)):
        trunk = (x / (width + margin_mm)) ** 2 + (y / (depth + margin_mm)) ** 2 < 1
        leg = (np.abs(x) - leg_mm - 14) ** 2 + (y + 5) ** 2 < (leg_mm + margin_mm / 2) ** 2
        label[np.where(z < _LEGS_BELOW_MM, leg, trunk)] = tissue
    wall_mm = _WALL_MM * body.wall
    cavity = (x / (width - wall_mm)) ** 2 + (y / (depth - wall_mm)) ** 2 < 1
    label[cavity & (z > -268 + 0.5 * np.abs(x)) & (z < 300 - 0.6 * np.abs(x))] = _FAT
    return label


def _lungs(label: np.ndarray, axes_mm: Sequence[np.ndarray], body: Body, rng: np.random.Generator) -> None:
    """Draw the lobes of the lungs into the cavity, above the diaphragm and beside the mediastinum."""
    x, y, z = _reference(axes_mm, body)
    dome = 96 + body.breath_mm - 40 * ((x / 125) ** 2 + (y / 85) ** 2) + x / 16
    middle = 34 + 4 * rng.standard_normal() + 6 * np.sin(z / 40) - 0.16 * (z - 180)
    aside = (np.abs(x) > middle) | (y < -60 + 0.1 * z)
    lung = (label == _FAT) & (z > dome) & aside & (np.abs(x) > 24)
    upper = z > 165 + 8 * rng.standard_normal() - (0.9 + 0.08 * rng.standard_normal()) * y
    middle_lobe = (x > 0) & (z < 172 + 8 * rng.standard_normal())
    label[lung & (x < 0) & upper] = IDS["lung_upper_lobe_left"]
    label[lung & (x < 0) & ~upper] = IDS["lung_lower_lobe_left"]
    label[lung & (x > 0) & upper] = IDS["lung_upper_lobe_right"]
    label[lung & upper & middle_lobe] = IDS["lung_middle_lobe_right"]
    label[lung & (x > 0) & ~upper] = IDS["lung_lower_lobe_right"]


def _draw_pose(organ: Organ, body: Body, rng: np.random.Generator) -> Pose:
    """Draw the position, size and shape of an organ; contralateral organs share most of their size."""
    shared = body.organs[IDS.get(organ.name.replace("left", "right"), IDS[organ.name])]
    own = OWN_SIZE * rng.standard_normal() + np.sqrt(1 - OWN_SIZE**2) * shared
    growth = np.exp(0.05 * body.size + organ.variation * own)
    if rng.random() < RARE_PERCENT / 100:
        growth *= rng.choice([0.5, 2.0])
    turn = Rotation.from_rotvec((1.5 if organ.thin else 5) * rng.standard_normal(3), degrees=True).as_matrix()
    uneven = np.exp(0.09 * rng.standard_normal(3))
    across = uneven / np.cbrt(uneven.prod()) * (np.sqrt(growth) if organ.thin else np.cbrt(growth))
    middle = np.mean([point for path, _ in organ.parts for point in path], axis=0)
    centre = middle * body.scale + 3.5 * rng.standard_normal(3)
    centre[2] += body.breath_mm * float(organ.inside and -120 < middle[2] < 110)
    return Pose(
        middle,
        centre,
        turn,
        body.scale if organ.thin else across,
        across,
        rng.uniform(0, 2 * np.pi, 3).astype(np.float32),
    )


def _draw_organ(label: np.ndarray, axes_mm: Sequence[np.ndarray], organ: Organ, pose: Pose, free: np.ndarray) -> None:
    """Draw an organ into `free` voxels, each of its parts within its bounding box."""
    centre_mm = pose.centre_mm.astype(np.float32)
    for line, radii in organ.parts:
        path_mm, radii_mm = (np.array(line) - pose.reference_mm) * pose.along, radii * pose.across
        ends_mm, reach_mm = centre_mm + path_mm @ pose.turn.T, radii_mm.max() * (1 + 2 * SURFACE_DEPTH)
        box = tuple(
            slice(*np.searchsorted(axis, (low - reach_mm, high + reach_mm)))
            for axis, low, high in zip(axes_mm, ends_mm.min(axis=0), ends_mm.max(axis=0), strict=True)
        )
        x, y, z = (axis[part] - middle for axis, part, middle in zip(axes_mm, box, centre_mm, strict=True))
        unturn = (pose.turn.T / radii_mm[:, None]).astype(np.float32)
        points = [across[0] * x[:, None, None] + across[1] * y[:, None] + across[2] * z for across in unturn]
        points = [p + SURFACE_DEPTH * np.sin(2.5 * points[n - 1] + pose.waves[n]) for n, p in enumerate(points)]
        label[box][_near_line(points, (path_mm / radii_mm).astype(np.float32)) & free[box]] = IDS[organ.name]


def _near_line(points: Sequence[np.ndarray], path: np.ndarray) -> np.ndarray:
    """Return which points lie within 1 of a polyline, or of a single point."""
    near = np.zeros(points[0].shape, dtype=bool)
    for start, end in zip(path, path[1:] if len(path) > 1 else path, strict=False):
        offsets, step = [p - s for p, s in zip(points, start, strict=True)], end - start
        along = sum(o * s for o, s in zip(offsets, step, strict=True)) / max(step @ step, 1e-6)
        along = np.clip(along, 0, 1)
        near |= sum((o - along * s) ** 2 for o, s in zip(offsets, step, strict=True)) < 1
    return near
