"""The reference body of the label maps of `tools/label_body.py`, neck to thigh: ellipsoids swept along lines.

Places are in mm: x to the right, y to the front, z up from the first lumbar vertebra. Sizes are those of adults, so
that the published volume ranges can be tested. Real hearts are about twice as large as those ranges allow; the heart
here is small enough to fit them.
"""

from __future__ import annotations

from typing import NamedTuple

from scripts.common.organs import ORGANS

IDS = {name: label for label, name in ORGANS.items()}
TISSUES = tuple(IDS[name] for name in ("subcutaneous_fat", "muscle", "inner_fat"))
ABSENT = {"gallbladder": 0.12, "kidney_left": 0.005, "kidney_right": 0.005, "spleen": 0.01, "thyroid_gland": 0.02}

Triple = tuple[float, float, float]
Part = tuple[tuple[Triple, ...], Triple]


class Organ(NamedTuple):
    """An organ of the reference body.

    Attributes:
        name: of `ORGANS`.
        variation: coefficient of variation of its volume among bodies of one size.
        parts: lines along which an ellipsoid is swept, with its radii; one point is an ellipsoid.
        thin: grows across and not along its lines.
        inside: stays within the body's cavity.
    """

    name: str
    variation: float
    parts: tuple[Part, ...]
    thin: bool = False
    inside: bool = True


def _tube(radius: float, *points: Triple) -> Part:
    return points, (radius, radius, radius)


def _blob(centre: Triple, *radii: float) -> Part:
    return (centre,), (radii[0], radii[1], radii[2])


def _pair(organ: Organ) -> tuple[Organ, Organ]:
    """Name a right organ and mirror it."""
    mirrored = tuple((tuple((-x, y, z) for x, y, z in path), radii) for path, radii in organ.parts)
    return organ._replace(name=f"{organ.name}_right"), organ._replace(name=f"{organ.name}_left", parts=mirrored)


_COLUMN = ((0, -56, -125), (0, -46, -50), (0, -52, 60), (0, -62, 180), (0, -50, 280), (0, -32, 370))
_BEHIND = tuple((x, y - 26, z) for x, y, z in _COLUMN)

# In drawing order: later organs cover earlier ones.
FRAME = (
    *_pair(Organ("gluteus_maximus", 0.2, (_blob((78, -78, -235), 55, 34, 92),), inside=False)),
    *_pair(Organ("gluteus_medius", 0.2, (_blob((118, -32, -165), 24, 40, 66),), inside=False)),
    *_pair(Organ("autochthon", 0.18, ((tuple((34, y - 12, z) for _, y, z in _BEHIND), (25, 17, 20)),), True, False)),
    *_pair(Organ("iliopsoas", 0.22, (_tube(18, (38, -45, 10), (50, -30, -120), (75, -5, -225)),), True, False)),
    *_pair(
        Organ("hip", 0.12, (_tube(22, (98, -30, -115), (78, -38, -160), (84, -8, -215), (38, 38, -245)),), True, False)
    ),
    *_pair(
        Organ(
            "femur",
            0.12,
            (
                _blob((90, -8, -217), 25, 25, 25),
                _tube(15, (90, -8, -217), (128, -15, -245), (112, -5, -330), (96, -5, -520)),
            ),
            True,
            False,
        )
    ),
    *_pair(Organ("scapula", 0.15, (_blob((112, -76, 215), 40, 9, 62),), inside=False)),
    *_pair(Organ("clavicula", 0.15, (_tube(8.5, (20, 62, 285), (70, 45, 298), (125, 10, 296)),), True, False)),
    Organ("sternum", 0.18, (((((0, 84, 265), (0, 100, 120))), (20, 8, 12)),), True, False),
    Organ("sacrum", 0.12, (_blob((0, -72, -165), 48, 22, 58),), inside=False),
    Organ(
        "vertebra_posterior_elements",
        0.12,
        ((tuple((x, y - 10, z) for x, y, z in _BEHIND), (22, 15, 15)),),
        True,
        False,
    ),
    Organ("vertebra_body", 0.12, ((_COLUMN, (22, 17, 17)),), True, False),
    Organ("spinal_channel", 0.12, ((_BEHIND, (10, 9, 9)),), True, False),
    Organ("spinal_cord", 0.12, (_tube(5.5, *((x, y, max(z, 15)) for x, y, z in _BEHIND[2:])),), True, False),
)
VISCERA = (
    Organ("esophagus", 0.2, (_tube(8, (-3, -20, 330), (-4, -28, 200), (-10, -18, 120), (-32, 3, 88)),), True),
    Organ("trachea", 0.2, (_tube(10, (0, -8, 350), (0, -14, 290), (0, -20, 205)),), True, False),
    Organ("heart", 0.18, (_blob((-20, 32, 138), 46, 40, 44),)),
    Organ(
        "aorta",
        0.2,
        (_tube(12, (8, 22, 150), (8, 18, 195), (-14, -20, 205), (-20, -34, 150), (-12, -26, 0), (-4, -22, -90)),),
        True,
    ),
    Organ("inferior_vena_cava", 0.22, (_tube(11, (14, -20, -92), (18, -20, 30), (14, 0, 108)),), True),
    *_pair(Organ("iliac_artery", 0.22, (_tube(6.5, (6, -20, -98), (36, -26, -150), (58, 22, -222)),), True)),
    Organ(
        "intestine",
        0.25,
        (
            _blob((0, 38, -95), 74, 34, 66),
            _tube(19, (92, 0, -140), (92, 8, -45), (60, 56, -36), (-60, 54, -26), (-94, 4, -15), (-92, -4, -140)),
            _tube(15, (-92, -4, -140), (-30, 5, -160), (0, -28, -190), (0, -40, -240)),
        ),
        True,
    ),
    Organ("liver", 0.2, (_blob((62, 8, 44), 66, 70, 82), ((((24, 38, 58), (-24, 40, 68))), (38, 28, 30)))),
    Organ("stomach", 0.38, (_blob((-52, 20, 52), 30, 32, 40), _tube(17, (-48, 34, 16), (-10, 44, -2), (22, 34, -2)))),
    Organ("spleen", 0.32, (_blob((-90, -22, 46), 28, 40, 52),)),
    *_pair(Organ("kidney", 0.18, (_blob((60, -33, -8), 30, 28, 56),))),
    *_pair(Organ("adrenal_gland", 0.22, (_tube(6, (28, -42, 54), (36, -28, 66), (46, -42, 56)),), True)),
    Organ("duodenum", 0.25, (_tube(13, (34, 30, -6), (46, 15, -24), (42, 4, -62), (5, 0, -66)),), True),
    Organ("pancreas", 0.25, (_tube(15, (28, 12, -16), (8, 20, 2), (-18, 14, 12), (-64, -6, 32)),), True),
    Organ(
        "portal_vein_and_splenic_vein", 0.25, (_tube(7.5, (-66, -12, 38), (-30, 0, 22), (10, 2, 8), (42, 6, 38)),), True
    ),
    Organ("gallbladder", 0.4, (_tube(15, (50, 46, -8), (54, 56, -26)),)),
    Organ("urinary_bladder", 0.4, (_blob((0, 34, -205), 39, 33, 40),)),
    Organ("prostate", 0.25, (_blob((0, 14, -250), 22, 17, 18),), inside=False),
    Organ(
        "thyroid_gland",
        0.2,
        (_tube(10, (19, 12, 328), (21, 2, 352)), _tube(10, (-19, 12, 328), (-21, 2, 352))),
        True,
        False,
    ),
)
