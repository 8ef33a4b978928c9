"""One CT torso phantom: thirteen abdominal organs in BTCV numbering, painted as ellipsoids and tubes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from tools.phantom_parts import INF, body_points, check_grid, column

DEFAULT_SHAPE = (100, 74, 52)
DEFAULT_SPACING_MM = (3.0, 3.0, 5.0)
REFERENCE_FIELD_MM = (300.0, 220.0, 260.0)

Point = tuple[float, float, float]  # right, anterior, superior in mm from the centre of the reference field


class Tissue(NamedTuple):
    """A tissue: its label, its mean HU and the standard deviation of its texture in HU."""

    label: int
    hu: float
    texture_hu: float


TISSUES = {
    "air": Tissue(0, -1000, 0),
    "spleen": Tissue(1, 135, 4),
    "right kidney": Tissue(2, 190, 10),
    "left kidney": Tissue(3, 190, 10),
    "gallbladder": Tissue(4, 10, 2),
    "esophagus": Tissue(5, 45, 5),
    "liver": Tissue(6, 110, 6),
    "stomach": Tissue(7, 40, 10),
    "aorta": Tissue(8, 170, 3),
    "inferior vena cava": Tissue(9, 150, 5),
    "portal and splenic veins": Tissue(10, 160, 4),
    "pancreas": Tissue(11, 90, 9),
    "right adrenal gland": Tissue(12, 75, 3),
    "left adrenal gland": Tissue(13, 75, 3),
    "stomach gas": Tissue(7, -850, 30),
    "gas": Tissue(0, -850, 30),
    "bowel": Tissue(0, 25, 15),
    "fat": Tissue(0, -100, 8),
    "muscle": Tissue(0, 55, 6),
    "bone": Tissue(0, 320, 60),
    "canal": Tissue(0, 30, 4),
    "lung": Tissue(0, -820, 30),
    "heart": Tissue(0, 130, 6),
}
CODES = {name: code for code, name in enumerate(TISSUES)}
ORGANS = tuple(name for name, tissue in TISSUES.items() if tissue.label and name != "stomach gas")


@dataclass(frozen=True)
class Form:
    """An ellipsoid (a ball if the radii are one number), swept along the path if that has several points."""

    organ: str  # moves and grows with this organ
    path_mm: Point | tuple[Point, ...]
    radii_mm: float | Point
    tissue: str = ""  # the organ's own where empty
    within: str = ""  # paints over this tissue only

    def contains(self, points_mm: np.ndarray, growth: float) -> np.ndarray:
        """Return which of `points_mm` (3, ...) lie inside if the radii are `growth` times as long."""
        inside = np.zeros(points_mm.shape[1:], bool)
        path = np.atleast_2d(np.divide(self.path_mm, self.radii_mm)).astype(np.float32)
        points = points_mm / column(np.broadcast_to(self.radii_mm, 3))
        for start, end in zip(path, path[1:] if len(path) > 1 else path, strict=False):
            offsets, axis = points - column(start), end - start
            along = sum(o * a for o, a in zip(offsets, axis, strict=True)) / max(axis @ axis, 1e-6)
            along = np.clip(along, 0, 1)
            inside |= sum((o - along * a) ** 2 for o, a in zip(offsets, axis, strict=True)) < growth**2
        return inside


# Painted in order: later forms cover earlier ones.
VISCERA = (
    Form("muscle", ((30, -46, 20), (38, -46, -60), (52, -36, -140)), 16),
    Form("muscle", ((-30, -46, 20), (-38, -46, -60), (-52, -36, -140)), 16),
    Form("bowel", ((88, 0, -140), (90, 4, -50), (70, 48, -38), (0, 60, -46)), 17),
    Form("bowel", ((0, 60, -46), (-70, 44, -30), (-94, -4, -20), (-92, -10, -140)), 15),
    Form("bowel", (48, 4, -22), (11, 12, 28)),
    Form("liver", (64, 6, 34), (65, 72, 84)),
    Form("liver", ((24, 40, 52), (-18, 42, 62)), (40, 30, 34)),
    Form("spleen", (-88, -26, 34), (28, 44, 54)),
    Form("stomach", (-48, 6, 62), (33, 36, 34)),
    Form("stomach", (-46, 30, 34), (28, 26, 40)),
    Form("stomach", ((-44, 34, 12), (-14, 42, -2), (20, 34, -2)), 13),
    Form("stomach", (-46, 44, 46), (18, 12, 20), "stomach gas", "stomach"),
    Form("right kidney", ((62, -38, -30), (58, -36, 2)), (31, 29, 43), "fat"),
    Form("right kidney", ((62, -38, -30), (58, -38, 2)), (26, 24, 38)),
    Form("right kidney", (40, -34, -14), (16, 10, 18), "fat", "right kidney"),
    Form("left kidney", ((-62, -38, -16), (-58, -38, 16)), (31, 29, 43), "fat"),
    Form("left kidney", ((-62, -38, -16), (-58, -38, 16)), (26, 24, 38)),
    Form("left kidney", (-40, -34, 0), (16, 10, 18), "fat", "left kidney"),
    Form("right adrenal gland", (38, -36, 46), (16, 16, 20), "fat"),
    Form("right adrenal gland", ((30, -44, 40), (36, -28, 52), (46, -44, 42)), 6),
    Form("left adrenal gland", (-38, -34, 58), (16, 16, 20), "fat"),
    Form("left adrenal gland", ((-30, -42, 52), (-36, -26, 64), (-46, -42, 54)), 6),
    Form("gallbladder", ((46, 40, -6), (50, 48, -24)), 15),
    Form("pancreas", (28, 10, -14), (14, 14, 22)),
    Form("pancreas", ((26, 12, -4), (8, 20, 4), (-16, 12, 14), (-62, -2, 30)), 11),
)
FRAME = (
    Form("fat", (-4, -18, 100), (32, 48, INF), within="lung"),
    Form("heart", (-14, 28, 128), (52, 38, 26), within="lung"),
    Form("muscle", (32, -74, 0), (27, 17, INF)),
    Form("muscle", (-32, -74, 0), (27, 17, INF)),
    Form("bone", (0, -53, 0), (22, 18, INF)),
    Form("bone", (0, -82, 0), (7, 14, INF)),
    Form("bone", (0, -74, 0), (28, 5, INF)),
    Form("canal", (0, -75, 0), (9, 8, INF)),
    Form("inferior vena cava", ((17, -20, -150), (17, -20, 20), (22, -12, 70), (12, 4, 112)), 11.5),
    Form("aorta", ((-12, -21, -150), (-11, -21, 40), (-15, -26, 150)), 10.5),
    Form("esophagus", ((-6, -3, 150), (-8, -2, 112), (-24, 0, 96), (-32, 3, 88)), 8.5),
    Form("portal and splenic veins", ((-68, -10, 38), (-32, -5, 22), (10, 0, 8)), 6.2),
    Form("portal and splenic veins", ((13, 5, -26), (10, 0, 8), (26, 4, 26), (44, 6, 38)), 6.2),
    Form("portal and splenic veins", ((44, 6, 38), (66, 2, 48)), 5),
)


class Anatomy(NamedTuple):
    """The random parameters of one patient, drawn before any voxel is painted."""

    bowel: list[Form]
    poses: dict[str, tuple[np.ndarray, float]]  # each organ's shift in mm and growth
    size: float  # of the reference body
    fat_mm: float  # thickness under the skin
    knots_mm: np.ndarray  # (3, 6, 6, 6) displacements at the knots of a cubic B-spline over the field
    hu: np.ndarray  # mean HU of each tissue code


def torso_phantom(
    rng: np.random.Generator,
    shape: Sequence[int] = DEFAULT_SHAPE,
    spacing_mm: Sequence[float] = DEFAULT_SPACING_MM,
    organs: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Make one phantom on a grid whose axes run to the patient's right, front and head (RAS).

    The torso fills the field of view `shape * spacing_mm`: adult size at about 300 x 220 x 260 mm, smaller or
    larger in proportion otherwise.

    Args:
        rng: source of randomness.
        shape: voxels along right, anterior, superior.
        spacing_mm: voxel size along the same axes, in mm.
        organs: numbers of those that are labelled; empty: all.

    Returns:
        The image (int16, HU) and the label (uint8, BTCV numbers 1 to 13), both of the given shape.

    Raises:
        ValueError: shape or spacing_mm is not three positive numbers, or the grid is too coarse for an organ.
    """
    check_grid(shape, spacing_mm)
    anatomy = _draw_anatomy(rng)
    codes = _paint(body_points(anatomy.knots_mm, shape, REFERENCE_FIELD_MM, anatomy.size), anatomy)
    label = np.array([tissue.label for tissue in TISSUES.values()], np.uint8)[codes]
    missing = [name for name in ORGANS if not (label == TISSUES[name].label).any()]
    if missing:
        raise ValueError(f"shape={tuple(shape)} leaves no voxel of {missing}; give more and smaller voxels")
    if organs:
        label[~np.isin(label, organs)] = 0
    return _acquire(rng, codes, anatomy.hu, spacing_mm), label


def _draw_anatomy(rng: np.random.Generator) -> Anatomy:
    offsets_hu = np.clip(rng.normal(0, 4, len(TISSUES)), -8, 8)
    offsets_hu[CODES["air"]] = 0
    return Anatomy(
        bowel=_draw_bowel(rng),
        poses={name: (rng.uniform(-3, 3, 3), rng.uniform(0.92, 1.08)) for name in TISSUES},
        size=rng.uniform(0.95, 1.03),
        fat_mm=rng.uniform(6, 14),
        knots_mm=rng.normal(0, 11, (3, 6, 6, 6)),
        hu=np.array([tissue.hu for tissue in TISSUES.values()]) + offsets_hu,
    )


def _draw_bowel(rng: np.random.Generator) -> list[Form]:
    loops = []
    for _ in range(20):
        centre, radii = rng.uniform((-66, -12, -126), (66, 50, -44)), rng.uniform(12, 21, 3)
        loops.append(Form("bowel", tuple(centre), tuple(radii)))
        if rng.random() < 0.4:  # the patient lies supine: gas rises to the front
            front = centre + np.array([0, radii[1] * 0.6, 0])
            loops.append(Form("bowel", tuple(front), tuple(radii * 0.6), "gas", "bowel"))
    return loops


def _paint(points: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """Return the tissue code of each voxel."""
    right, anterior, superior = points
    codes = np.full(right.shape, CODES["fat"], np.uint8)
    _paint_forms(codes, points, [*anatomy.bowel, *VISCERA], anatomy.poses)
    reach = (right / 118) ** 2 + (anterior / 76) ** 2
    codes[superior > 104 - 36 * reach + right / 20] = CODES["lung"]
    wall = reach >= 1
    codes[wall] = CODES["muscle"]
    middle = (right / 123) ** 2 + (anterior / 81) ** 2
    ribs = (np.abs(middle - 1) < 0.06) & ((superior + 0.4 * anterior) % 30 < 10) & (superior > -25)
    codes[wall & ribs] = CODES["bone"]
    codes[(right / 128) ** 2 + (anterior / 86) ** 2 >= 1] = CODES["fat"]
    _paint_forms(codes, points, FRAME, anatomy.poses)
    codes[(codes == CODES["bone"]) & (np.abs(right) < 30) & (superior % 34 < 7)] = CODES["muscle"]
    skin_mm = anatomy.fat_mm + np.array([128, 86])
    codes[(right / skin_mm[0]) ** 2 + (anterior / skin_mm[1]) ** 2 >= 1] = CODES["air"]
    return codes


def _paint_forms(
    codes: np.ndarray, points: np.ndarray, forms: Sequence[Form], poses: dict[str, tuple[np.ndarray, float]]
) -> None:
    for form in forms:
        shift_mm, growth = poses[form.organ]
        inside = form.contains(points - column(shift_mm), growth)
        if form.within:
            inside &= codes == CODES[form.within]
        codes[inside] = CODES[form.tissue or form.organ]


def _acquire(rng: np.random.Generator, codes: np.ndarray, hu: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the scan of a tissue map, with texture, then partial volume, then noise of 10 to 14 HU."""
    texture = ndimage.gaussian_filter(rng.standard_normal(codes.shape), 5.0 / np.array(spacing_mm))
    texture_hu = np.array([tissue.texture_hu for tissue in TISSUES.values()])
    image = hu[codes] + texture_hu[codes] * texture / texture.std()
    image = ndimage.gaussian_filter(image, 1.4 / np.array(spacing_mm), mode="nearest")
    image += rng.normal(0, rng.uniform(10, 14), codes.shape)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)
