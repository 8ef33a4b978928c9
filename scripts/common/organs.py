"""The 72 organs and their names in other tools; foreground classes and left-right pairs of a `channel_def`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from scripts.common.errors import InputError

ORGANS: dict[int, str] = {
    1: "spleen",
    2: "kidney_right",
    3: "kidney_left",
    4: "gallbladder",
    5: "liver",
    6: "stomach",
    7: "pancreas",
    8: "adrenal_gland_right",
    9: "adrenal_gland_left",
    10: "lung_upper_lobe_left",
    11: "lung_lower_lobe_left",
    12: "lung_upper_lobe_right",
    13: "lung_middle_lobe_right",
    14: "lung_lower_lobe_right",
    15: "esophagus",
    16: "trachea",
    17: "thyroid_gland",
    18: "intestine",
    19: "duodenum",
    20: "rib",
    21: "urinary_bladder",
    22: "prostate",
    23: "sacrum",
    24: "heart",
    25: "aorta",
    26: "pulmonary_vein",
    27: "brachiocephalic_trunk",
    28: "subclavian_artery_right",
    29: "subclavian_artery_left",
    30: "common_carotid_artery_right",
    31: "common_carotid_artery_left",
    32: "brachiocephalic_vein_left",
    33: "brachiocephalic_vein_right",
    34: "atrial_appendage_left",
    35: "superior_vena_cava",
    36: "inferior_vena_cava",
    37: "portal_vein_and_splenic_vein",
    38: "iliac_artery_left",
    39: "iliac_artery_right",
    40: "iliac_vena_left",
    41: "iliac_vena_right",
    42: "humerus_left",
    43: "humerus_right",
    44: "scapula_left",
    45: "scapula_right",
    46: "clavicula_left",
    47: "clavicula_right",
    48: "femur_left",
    49: "femur_right",
    50: "hip_left",
    51: "hip_right",
    52: "spinal_cord",
    53: "gluteus_maximus_left",
    54: "gluteus_maximus_right",
    55: "gluteus_medius_left",
    56: "gluteus_medius_right",
    57: "gluteus_minimus_left",
    58: "gluteus_minimus_right",
    59: "autochthon_left",
    60: "autochthon_right",
    61: "iliopsoas_left",
    62: "iliopsoas_right",
    63: "sternum",
    64: "costal_cartilages",
    65: "subcutaneous_fat",
    66: "muscle",
    67: "inner_fat",
    68: "IVD",
    69: "vertebra_body",
    70: "vertebra_posterior_elements",
    71: "spinal_channel",
    72: "bone_other",
}
"""Label id to organ, as in VIBESegmentator (formerly TotalVibeSegmentator). UKBOB's labels do not use 20; newer models
of VIBESegmentator segment ribs in CT."""

UNPAIRED = frozenset({"lung_middle_lobe_right", "atrial_appendage_left"})
"""Organs with a side in their name that exist on this side only."""

_RIBS = [f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13)]
_ORGAN_OF = {"small_bowel": "intestine", "colon": "intestine", "intervertebral_discs": "IVD"}
_ORGAN_OF |= {"skeletal_muscle": "muscle", "torso_fat": "inner_fat"}
_ORGAN_OF |= dict.fromkeys(_RIBS, "rib")

IDS_OF_NAMES: dict[str, int] = {name: label for label, name in ORGANS.items()}
"""Name to label id: the organs', and those of TotalSegmentator's tasks `total` (CT), `total_mr` and `tissue_types`.

Structures without a counterpart are left out: whole vertebrae (here body and posterior elements are two organs),
undivided lungs (MR), kidney cysts, brain and skull."""
IDS_OF_NAMES |= {other: IDS_OF_NAMES[name] for other, name in _ORGAN_OF.items()}

_BY_LOWER_NAME = {name.lower(): name for name in ORGANS.values()}
_ANY_OF = {
    "lung_left": ("lung_upper_lobe_left", "lung_lower_lobe_left"),
    "lung_right": ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
    "vertebrae": ("vertebra_body", "vertebra_posterior_elements"),
}
_SYNONYMS = {
    "oesophagus": "esophagus",
    "gall_bladder": "gallbladder",
    "bladder": "urinary_bladder",
    "postcava": "inferior_vena_cava",
    "portal_and_splenic_veins": "portal_vein_and_splenic_vein",
    "portal_vein_and_splenic_veins": "portal_vein_and_splenic_vein",
    "prostate_uterus": "prostate",
    "prostate_or_uterus": "prostate",
    "thyroid": "thyroid_gland",
}
_SIDES = {"right": "right", "left": "left", "r": "right", "l": "left"}


SNOMED_CODES: dict[str, tuple[str, str]] = {
    "spleen": ("78961009", "Spleen"),
    "kidney": ("64033007", "Kidney"),
    "gallbladder": ("28231008", "Gallbladder"),
    "esophagus": ("32849002", "Esophagus"),
    "liver": ("10200004", "Liver"),
    "stomach": ("69695003", "Stomach"),
    "aorta": ("15825003", "Aorta"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "portal and splenic veins": ("32764006", "Portal vein"),  # no code that DICOM uses means both
    "pancreas": ("15776009", "Pancreas"),
    "adrenal gland": ("23451007", "Adrenal gland"),
    "right": ("24028007", "Right"),
    "left": ("7771000", "Left"),
}
"""Name of a class, without its side, or side to SNOMED CT code and meaning, as in DICOM PS3.16."""


def snomed_codes(name: str) -> tuple[tuple[str, str], tuple[str, str] | None]:
    """Return the SNOMED CT code and meaning of a class, and those of its side if it has one.

    Args:
        name: such as "right kidney".

    Raises:
        InputError: the table lacks the class.

    >>> snomed_codes("right kidney")
    (('64033007', 'Kidney'), ('24028007', 'Right'))
    """
    words = name.split()
    side = next((word for word in words if word in ("right", "left")), "")
    organ = " ".join(word for word in words if word != side)
    if organ not in SNOMED_CODES:
        raise InputError(f"{name}: has no SNOMED CT code; add it to SNOMED_CODES.")
    return SNOMED_CODES[organ], SNOMED_CODES.get(side)


def organ_name(name: str) -> str:
    """Return the name that the same organ has in every data set: that of `ORGANS` if it is one of them.

    Case, spaces, dashes and where the side stands do not count. Known are the names of BTCV, AMOS (whose
    `prostate/uterus` is taken for the prostate) and TotalSegmentator.

    >>> [organ_name(name) for name in ("right kidney", "Kidney_Right", "postcava", "small_bowel", "brain")]
    ['kidney_right', 'kidney_right', 'inferior_vena_cava', 'intestine', 'brain']
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    sides = [_SIDES[word] for word in words if word in _SIDES]
    base = "_".join(word for word in words if word not in _SIDES)
    joined = "_".join([_SYNONYMS.get(base, base), *sides[:1]])
    if joined.startswith("rib_") and sides:
        joined = "rib"
    organ = _ORGAN_OF.get(joined, joined)
    return _BY_LOWER_NAME.get(organ.lower(), organ)


def spoken_name(name: str) -> str:
    """Return the name of an organ as a text has it: spaces for underscores, and the side first.

    >>> [spoken_name(name) for name in ("kidney_left", "lung_upper_lobe_right", "liver", "left kidney", "IVD")]
    ['left kidney', 'right lung upper lobe', 'liver', 'left kidney', 'IVD']
    """
    words = name.replace("_", " ").split()
    return " ".join(sorted(words, key=lambda word: word.lower() not in ("left", "right")))


def spoken_names() -> list[str]:
    """Return all names of organs that are known here, synonyms included, as texts have them.

    >>> {"left kidney", "small bowel", "portal and splenic veins"} <= set(spoken_names())
    True
    """
    return sorted({spoken_name(name) for name in (*IDS_OF_NAMES, *_ANY_OF, *_SYNONYMS)})


def organ_ids(name: str) -> tuple[int, ...]:
    """Return the ids of the organs that a structure is made of: usually one, several of a whole lung, none if unknown.

    >>> organ_ids("right kidney"), organ_ids("lung_left"), organ_ids("brain")
    ((2,), (10, 11), ())
    """
    organ = organ_name(name)
    return tuple(IDS_OF_NAMES[part] for part in _ANY_OF.get(organ, (organ,)) if part in IDS_OF_NAMES)


def foreground_classes(channel_def: Mapping[str, str]) -> dict[int, str]:
    """Turn the metadata's `channel_def` into class ids and names without the background.

    Args:
        channel_def: channel index, as a string, to class name; `"0"` is the background. Without the background these
            may be some of the classes.

    Returns:
        Class id to name, by ascending id.

    Raises:
        InputError: an index is not a whole number from 0, a name occurs twice, or beside the background an index is
            missing: labels and network outputs are counted by the number of names.
    """
    names: dict[int, str] = {}
    for key, name in channel_def.items():
        if not re.fullmatch(r"[0-9]+", str(key)) or not isinstance(name, str) or not name.strip():
            raise InputError(f"channel_def names the index {key!r} {name!r}: give whole numbers from 0 and text.")
        if int(key) in names or name in names.values():
            raise InputError(f"channel_def has index {key} or name {name!r} twice: give each class one of its own.")
        names[int(key)] = name
    if 0 in names and (missing := sorted(set(range(len(names))) - names.keys())):
        raise InputError(f"channel_def has {len(names)} classes, but not the index {missing[0]}: leave no index out.")
    return {class_id: names[class_id] for class_id in sorted(names) if class_id > 0}


def left_right_pairs(channel_def: Mapping[str, str] | Mapping[int, str]) -> list[tuple[int, int]]:
    """Find the classes that swap their labels when a patient is mirrored.

    Args:
        channel_def: channel index to class name; the names of a pair differ only in the words `right` and `left`,
            between spaces or underscores.

    Returns:
        Pairs of class ids (right, left); the organs in `UNPAIRED` have none.

    Raises:
        InputError: a `right ...` class has no `left ...` class, or the other way round; see also `foreground_classes`.

    >>> left_right_pairs({"1": "liver", "2": "right kidney", "3": "left kidney"})
    [(2, 3)]
    """
    by_name = {name.lower(): k for k, name in foreground_classes(channel_def).items() if name not in UNPAIRED}
    pairs, sided = [], set()
    for name, index in by_name.items():
        words = re.split(r"([ _])", name)
        if "right" in words:
            left = "".join("left" if word == "right" else word for word in words)
            if left not in by_name:
                raise InputError(f"class {index} '{name}' has no contralateral class '{left}': add it to channel_def.")
            pairs.append((index, by_name[left]))
            sided |= {index, by_name[left]}
        elif "left" in words:
            sided.add(index)
    unpaired = sided - {index for pair in pairs for index in pair}
    if unpaired:
        raise InputError(f"classes {sorted(unpaired)} are 'left' without a 'right' class: add it to channel_def.")
    return sorted(pairs)


def contralateral_labels(organs: Mapping[int, str]) -> dict[int, int]:
    """Return, for each organ that has one, the label id of the same organ on the other side."""
    pairs = left_right_pairs(organs)
    return {label: other for pair in pairs for label, other in (pair, pair[::-1])}
