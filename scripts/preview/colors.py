"""Colours of organs in pictures, by name: an organ looks the same in every bundle.

The table is that of TotalSegmentator 2.18.0, modified: the column `DicomRGBColor` of
`totalsegmentator/resources/totalsegmentator_snomed_mapping.csv` in https://github.com/wasserth/TotalSegmentator, under
the Apache License 2.0. Arteries are red there, veins blue, muscles orange, bones light yellow, lungs cyan and bowel
purple; the right organ of a pair is mostly darker than the left one.

`originally` marks a colour that was changed, `added` one that the source lacks, another comment the source's name. A
colour was changed where

- organs that touch looked alike as they are drawn, at an opacity of 0.38 over mid gray: all now differ by a CIEDE2000
  distance of 10 or more, most by 12 or more;
- two organs of BTCV that do not touch differed by less than 10;
- it did not fit the organ or its other side: the liver is reddish brown as in 3D Slicer, the aorta red, bones are
  yellow or white on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product

RGB = tuple[int, int, int]

ORGAN_COLORS: dict[str, RGB] = {
    "spleen": (45, 165, 20),  # originally 50, 170, 60
    "kidney_right": (34, 102, 136),
    "kidney_left": (46, 138, 184),
    "gallbladder": (40, 235, 130),  # originally 54, 216, 119
    "liver": (140, 70, 45),  # originally 40, 140, 40
    "stomach": (255, 165, 185),  # originally 180, 70, 160
    "pancreas": (225, 235, 10),  # originally 60, 150, 80
    "adrenal_gland_right": (178, 128, 26),
    "adrenal_gland_left": (241, 172, 34),
    "lung_upper_lobe_left": (71, 232, 244),
    "lung_lower_lobe_left": (0, 165, 125),  # originally 34, 195, 207
    "lung_upper_lobe_right": (100, 218, 227),
    "lung_middle_lobe_right": (0, 215, 150),  # originally 63, 181, 190
    "lung_lower_lobe_right": (0, 120, 105),  # originally 26, 144, 153
    "esophagus": (190, 90, 170),
    "trachea": (5, 130, 165),  # originally 0, 180, 200
    "thyroid_gland": (250, 210, 60),
    "intestine": (160, 60, 180),  # small_bowel
    "duodenum": (80, 0, 210),  # originally 170, 80, 190
    "rib": (220, 165, 35),  # originally 230, 210, 180 (ribs)
    "urinary_bladder": (54, 94, 216),
    "prostate": (91, 253, 156),
    "sacrum": (255, 180, 15),  # originally 100, 216, 54
    "heart": (180, 0, 40),
    "aorta": (255, 80, 5),  # originally 216, 108, 54
    "pulmonary_vein": (37, 107, 237),
    "brachiocephalic_trunk": (255, 120, 120),  # originally 190, 10, 10
    "subclavian_artery_right": (162, 26, 26),
    "subclavian_artery_left": (218, 34, 34),
    "common_carotid_artery_right": (170, 17, 17),
    "common_carotid_artery_left": (230, 23, 23),
    "brachiocephalic_vein_left": (0, 92, 241),
    "brachiocephalic_vein_right": (0, 68, 178),
    "atrial_appendage_left": (255, 90, 150),  # originally 68, 248, 62
    "superior_vena_cava": (125, 180, 235),  # originally 74, 144, 18
    "inferior_vena_cava": (0, 70, 200),
    "portal_vein_and_splenic_vein": (110, 130, 240),  # originally 0, 90, 220
    "iliac_artery_left": (218, 0, 0),
    "iliac_artery_right": (162, 0, 0),
    "iliac_vena_left": (105, 165, 220),  # originally 0, 92, 230
    "iliac_vena_right": (78, 122, 163),  # originally 0, 68, 170
    "humerus_left": (220, 200, 50),  # originally 71, 62, 248
    "humerus_right": (163, 148, 37),  # originally 115, 46, 184
    "scapula_left": (253, 230, 195),
    "scapula_right": (187, 170, 144),
    "clavicula_left": (240, 190, 35),  # originally 255, 236, 201
    "clavicula_right": (178, 141, 26),  # originally 191, 174, 149
    "femur_left": (248, 212, 62),
    "femur_right": (184, 157, 46),  # originally 46, 184, 60
    "hip_left": (255, 250, 220),  # originally 230, 248, 62
    "hip_right": (189, 185, 163),  # originally 184, 46, 184
    "spinal_cord": (255, 215, 0),
    "gluteus_maximus_left": (253, 115, 34),
    "gluteus_maximus_right": (187, 85, 26),
    "gluteus_medius_left": (255, 30, 20),  # originally 255, 126, 46
    "gluteus_medius_right": (189, 22, 15),  # originally 196, 94, 34
    "gluteus_minimus_left": (255, 138, 57),
    "gluteus_minimus_right": (204, 102, 42),
    "autochthon_left": (241, 126, 57),
    "autochthon_right": (178, 94, 42),
    "iliopsoas_left": (230, 115, 46),
    "iliopsoas_right": (170, 85, 34),
    "sternum": (215, 195, 165),
    "costal_cartilages": (195, 225, 250),  # originally 250, 220, 190
    "subcutaneous_fat": (255, 255, 140),  # originally 255, 242, 178
    "muscle": (245, 130, 135),  # originally 230, 130, 40 (skeletal_muscle)
    "inner_fat": (250, 235, 160),  # torso_fat
    "IVD": (40, 175, 205),  # added
    "vertebra_body": (190, 160, 130),  # vertebrae_body
    "vertebra_posterior_elements": (255, 250, 195),  # added
    "spinal_channel": (150, 200, 255),  # added
    "bone_other": (245, 225, 200),  # skull
    "necrotic core": (220, 40, 60),  # added
    "edema": (60, 200, 90),  # added
    "enhancing tumour": (255, 215, 0),  # added
}
"""Organ or tumour to (red, green, blue), 0 to 255."""

ALIASES = {
    "portal and splenic veins": "portal_vein_and_splenic_vein",
    "enhancing tumor": "enhancing tumour",
}
"""Other names of an organ. Order of words, underscores and case need no entry."""

MID_GRAY: RGB = (128, 128, 128)
EXTRA_COLORS: tuple[RGB, ...] = tuple(
    color for color in product((0, 64, 128, 191, 255), repeat=3) if max(color) > 128 and max(color) - min(color) > 64
)
"""Bright colours for names that the table lacks."""


def class_colors(names: Mapping[int, str]) -> dict[int, RGB]:
    """Return the colour of each class.

    A name that the table lacks gets the extra colour that is farthest from mid gray and from the colours already
    given. Such names are served in alphabetical order, so class ids do not matter.

    Args:
        names: class id to name. Order of words, underscores and case do not matter: "right kidney" is "kidney_right".

    Returns:
        Class id to (red, green, blue), 0 to 255. Two classes share a colour only if they share a name, or if more
        names are unknown than there are `EXTRA_COLORS`.

    >>> class_colors({1: "right kidney", 2: "liver"})
    {1: (34, 102, 136), 2: (140, 70, 45)}
    """
    keys = {class_id: _key(name) for class_id, name in names.items()}
    colors = {key: _COLOR_OF[key] for key in keys.values() if key in _COLOR_OF}
    for key in sorted(set(keys.values()) - set(colors)):
        colors[key] = _farthest_from([MID_GRAY, *colors.values()])
    return {class_id: colors[key] for class_id, key in keys.items()}


def _key(name: str) -> tuple[str, ...]:
    """Return the words of a name in a fixed order."""
    return tuple(sorted(re.findall(r"[^\W_]+", name.lower())))


def _farthest_from(used: Sequence[RGB]) -> RGB:
    """Return the extra colour whose nearest used colour is farthest; of equals the first."""
    return max(EXTRA_COLORS, key=lambda color: min(_distance(color, other) for other in used))


def _distance(a: RGB, b: RGB) -> float:
    """Return the square of an RGB distance with weights near those of the eye ("redmean")."""
    red, (dr, dg, db) = (a[0] + b[0]) / 2, (x - y for x, y in zip(a, b, strict=True))
    return (2 + red / 256) * dr**2 + 4 * dg**2 + (2 + (255 - red) / 256) * db**2


_COLOR_OF: dict[tuple[str, ...], RGB] = {_key(name): color for name, color in ORGAN_COLORS.items()}
_COLOR_OF |= {_key(alias): ORGAN_COLORS[name] for alias, name in ALIASES.items()}
