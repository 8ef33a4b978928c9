"""The organs of every bundle: the table of 72, and what a config's `channel_def` says, as transforms need it."""

from __future__ import annotations

import re
from collections.abc import Mapping

ORGANS: dict[int, str] = dict(
    enumerate(
        """
        spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left
        lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right
        esophagus trachea thyroid_gland intestine duodenum rib urinary_bladder prostate sacrum heart aorta
        pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left
        common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right
        atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein
        iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right humerus_left humerus_right
        scapula_left scapula_right clavicula_left clavicula_right femur_left femur_right hip_left hip_right
        spinal_cord gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right
        gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left iliopsoas_right
        sternum costal_cartilages subcutaneous_fat muscle inner_fat IVD vertebra_body vertebra_posterior_elements
        spinal_channel bone_other
        """.split(),
        start=1,
    )
)
"""Label id to organ, as VIBESegmentator (formerly TotalVibeSegmentator) writes them; 20 is unused in UKBOB's labels,
its newer models find ribs in CT."""

UNPAIRED = frozenset({"lung_middle_lobe_right", "atrial_appendage_left"})
"""Sided organs that the other side of a body lacks."""

_RIBS = [f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13)]
_ORGAN_OF = {"small_bowel": "intestine", "colon": "intestine", "intervertebral_discs": "IVD"}
_ORGAN_OF |= {"skeletal_muscle": "muscle", "torso_fat": "inner_fat"}
_ORGAN_OF |= dict.fromkeys(_RIBS, "rib")

IDS_OF_NAMES: dict[str, int] = {name: label for label, name in ORGANS.items()}
"""Name to label id: the organs', and those of TotalSegmentator's tasks `total` (CT), `total_mr` and `tissue_types`.

What has no counterpart is not in it: whole vertebrae (here bodies and posterior elements are two organs), lungs that
are not divided into lobes (MR), kidney cysts, brain and skull."""
IDS_OF_NAMES |= {other: IDS_OF_NAMES[name] for other, name in _ORGAN_OF.items()}


def foreground_classes(channel_def: Mapping[str, str]) -> dict[int, str]:
    """Turn the metadata's `channel_def` into class ids and names without the background.

    Args:
        channel_def: channel index, as a string, to class name; `"0"` is the background.

    Returns:
        Class id to name, by ascending id.
    """
    return {int(k): name for k, name in sorted(channel_def.items(), key=lambda kv: int(kv[0])) if int(k) > 0}


def left_right_pairs(channel_def: Mapping[str, str]) -> list[tuple[int, int]]:
    """Find the classes that exchange their labels when a patient is mirrored.

    Args:
        channel_def: channel index to class name; partners differ only in the words `right` and `left`,
            between spaces or underscores.

    Returns:
        Pairs of class ids (right, left); those of `UNPAIRED` have none.

    Raises:
        ValueError: a `right …` class has no `left …` partner, or the other way round.
    """
    by_name = {name.lower(): int(k) for k, name in channel_def.items() if name not in UNPAIRED}
    pairs, sided = [], set()
    for name, index in by_name.items():
        words = re.split(r"([ _])", name)
        if "right" in words:
            partner = "".join("left" if word == "right" else word for word in words)
            if partner not in by_name:
                raise ValueError(f"class {index} '{name}' has no partner '{partner}': add it to channel_def.")
            pairs.append((index, by_name[partner]))
            sided |= {index, by_name[partner]}
        elif "left" in words:
            sided.add(index)
    lonely = sided - {index for pair in pairs for index in pair}
    if lonely:
        raise ValueError(f"classes {sorted(lonely)} are 'left' without a 'right' partner: add it to channel_def.")
    return sorted(pairs)
