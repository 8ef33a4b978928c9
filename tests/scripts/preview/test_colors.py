import colorsys
import itertools
import json

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from scripts.common.organs import ORGANS, foreground_classes, left_right_pairs
from scripts.preview.colors import EXTRA_COLORS, MID_GRAY, ORGAN_COLORS, class_colors
from scripts.preview.rendering import FILL
from tests.conftest import ROOT

BTCV_METADATA = ROOT / "bundles/swin_bob_btcv/configs/metadata.json"
TUMOUR = {1: "necrotic core", 2: "edema", 3: "enhancing tumour"}
# An organ and those that touch it, or lie next to it in a slice.
NEIGHBOURS = """
spleen: liver stomach kidney_left pancreas portal_vein_and_splenic_vein intestine adrenal_gland_left
spleen: lung_lower_lobe_left inner_fat rib muscle
kidney_right: lung_lower_lobe_right liver duodenum intestine adrenal_gland_right inferior_vena_cava iliopsoas_right
kidney_right: autochthon_right muscle inner_fat pancreas
kidney_left: lung_lower_lobe_left pancreas adrenal_gland_left stomach intestine iliopsoas_left autochthon_left muscle
kidney_left: inner_fat portal_vein_and_splenic_vein
gallbladder: duodenum intestine stomach pancreas inner_fat
liver: stomach kidney_right gallbladder esophagus inferior_vena_cava portal_vein_and_splenic_vein duodenum pancreas
liver: adrenal_gland_right heart lung_lower_lobe_right lung_middle_lobe_right intestine aorta rib muscle inner_fat
liver: costal_cartilages
stomach: pancreas esophagus duodenum intestine heart lung_lower_lobe_left inner_fat adrenal_gland_left
stomach: portal_vein_and_splenic_vein aorta
pancreas: duodenum portal_vein_and_splenic_vein inferior_vena_cava aorta intestine adrenal_gland_left inner_fat
adrenal_gland_right: inferior_vena_cava inner_fat
adrenal_gland_left: aorta inner_fat portal_vein_and_splenic_vein
lung_upper_lobe_left: lung_lower_lobe_left heart aorta trachea pulmonary_vein subclavian_artery_left rib muscle
lung_upper_lobe_left: atrial_appendage_left common_carotid_artery_left brachiocephalic_vein_left
lung_lower_lobe_left: heart aorta esophagus pulmonary_vein rib muscle vertebra_body
lung_upper_lobe_right: lung_middle_lobe_right lung_lower_lobe_right heart trachea superior_vena_cava
lung_upper_lobe_right: brachiocephalic_trunk brachiocephalic_vein_right subclavian_artery_right pulmonary_vein rib
lung_upper_lobe_right: muscle
lung_middle_lobe_right: lung_lower_lobe_right heart rib muscle pulmonary_vein
lung_lower_lobe_right: heart esophagus inferior_vena_cava pulmonary_vein rib muscle vertebra_body
esophagus: aorta trachea heart thyroid_gland vertebra_body
trachea: aorta thyroid_gland brachiocephalic_trunk common_carotid_artery_left superior_vena_cava
trachea: common_carotid_artery_right brachiocephalic_vein_left
thyroid_gland: common_carotid_artery_left common_carotid_artery_right muscle
intestine: duodenum urinary_bladder inner_fat muscle prostate sacrum inferior_vena_cava aorta iliac_artery_left
intestine: iliac_artery_right iliac_vena_left iliac_vena_right iliopsoas_left iliopsoas_right
duodenum: aorta inferior_vena_cava inner_fat portal_vein_and_splenic_vein
rib: costal_cartilages muscle vertebra_posterior_elements vertebra_body scapula_left scapula_right subcutaneous_fat
rib: autochthon_left autochthon_right
urinary_bladder: prostate inner_fat muscle
prostate: inner_fat muscle hip_left hip_right
sacrum: hip_left hip_right gluteus_maximus_left gluteus_maximus_right IVD spinal_channel autochthon_left
sacrum: autochthon_right vertebra_posterior_elements inner_fat muscle
heart: aorta pulmonary_vein superior_vena_cava inferior_vena_cava atrial_appendage_left inner_fat sternum
aorta: inferior_vena_cava pulmonary_vein brachiocephalic_trunk subclavian_artery_left common_carotid_artery_left
aorta: vertebra_body superior_vena_cava brachiocephalic_vein_left iliac_artery_left iliac_artery_right inner_fat
aorta: atrial_appendage_left
pulmonary_vein: atrial_appendage_left superior_vena_cava
brachiocephalic_trunk: brachiocephalic_vein_left brachiocephalic_vein_right superior_vena_cava subclavian_artery_right
brachiocephalic_trunk: common_carotid_artery_right
subclavian_artery_right: brachiocephalic_vein_right clavicula_right
subclavian_artery_left: brachiocephalic_vein_left clavicula_left
common_carotid_artery_left: brachiocephalic_vein_left muscle
common_carotid_artery_right: brachiocephalic_vein_right muscle
brachiocephalic_vein_left: sternum clavicula_left superior_vena_cava
brachiocephalic_vein_right: clavicula_right superior_vena_cava
inferior_vena_cava: iliac_vena_left iliac_vena_right vertebra_body inner_fat
iliac_artery_left: iliac_vena_left iliopsoas_left
iliac_artery_right: iliac_vena_right iliopsoas_right iliac_vena_left
iliac_vena_left: iliopsoas_left vertebra_body
iliac_vena_right: iliopsoas_right vertebra_body
humerus_left: scapula_left muscle
humerus_right: scapula_right muscle
scapula_left: clavicula_left muscle
scapula_right: clavicula_right muscle
clavicula_left: sternum muscle
clavicula_right: sternum muscle
femur_left: hip_left gluteus_minimus_left gluteus_medius_left gluteus_maximus_left muscle iliopsoas_left
femur_right: hip_right gluteus_minimus_right gluteus_medius_right gluteus_maximus_right muscle iliopsoas_right
hip_left: gluteus_medius_left gluteus_minimus_left iliopsoas_left gluteus_maximus_left muscle
hip_right: gluteus_medius_right gluteus_minimus_right iliopsoas_right gluteus_maximus_right muscle
spinal_cord: spinal_channel
gluteus_maximus_left: gluteus_medius_left subcutaneous_fat muscle
gluteus_maximus_right: gluteus_medius_right subcutaneous_fat muscle
gluteus_medius_left: gluteus_minimus_left subcutaneous_fat muscle
gluteus_medius_right: gluteus_minimus_right subcutaneous_fat muscle
gluteus_minimus_left: muscle
gluteus_minimus_right: muscle
autochthon_left: vertebra_posterior_elements muscle subcutaneous_fat
autochthon_right: vertebra_posterior_elements muscle subcutaneous_fat
iliopsoas_left: vertebra_body muscle inner_fat IVD vertebra_posterior_elements
iliopsoas_right: vertebra_body muscle inner_fat IVD vertebra_posterior_elements
sternum: costal_cartilages muscle subcutaneous_fat
costal_cartilages: muscle subcutaneous_fat
subcutaneous_fat: muscle
muscle: inner_fat bone_other
IVD: vertebra_body spinal_channel inner_fat
vertebra_body: vertebra_posterior_elements spinal_channel
vertebra_posterior_elements: spinal_channel
"""
TOUCHING = [
    (organ, other)
    for organ, others in (line.split(": ") for line in NEIGHBOURS.strip().splitlines())
    for other in others.split()
]
TOUCHING += itertools.combinations(TUMOUR.values(), 2)


@pytest.fixture(scope="module")
def btcv():
    outputs = json.loads(BTCV_METADATA.read_text())["network_data_format"]["outputs"]
    return foreground_classes(outputs["pred"]["channel_def"])


def as_drawn(colors, gray):
    """Return the CIELAB values of colours as an organ's inside is drawn over a gray from 0 to 1."""
    return rgb2lab(FILL * np.array(colors)[None] / 255 + (1 - FILL) * gray)[0]


def distances(pairs, gray=0.5):
    """Return the CIEDE2000 distances of pairs of colours as drawn."""
    first, second = (as_drawn(colors, gray) for colors in zip(*pairs, strict=True))
    return deltaE_ciede2000(first, second)


def too_close(pairs, least, gray=0.5):
    """Return the pairs of organs whose colours as drawn differ by less than `least`."""
    found = distances([(ORGAN_COLORS[a], ORGAN_COLORS[b]) for a, b in pairs], gray)
    return {pair: round(float(d), 1) for pair, d in zip(pairs, found, strict=True) if d < least}


def test_every_organ_has_a_colour(btcv):
    assert set(ORGANS.values()) | set(TUMOUR.values()) == set(ORGAN_COLORS)
    for names in (btcv, ORGANS, TUMOUR):
        colors = class_colors(names)
        assert list(colors) == list(names)
        assert set(colors.values()) <= set(ORGAN_COLORS.values())
    assert len(set(ORGAN_COLORS.values())) >= len(ORGANS)
    assert all(len(color) == 3 and all(0 <= part <= 255 for part in color) for color in ORGAN_COLORS.values())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("kidney_right", "right kidney"),
        ("kidney_left", "Left_Kidney"),
        ("adrenal_gland_left", "left adrenal gland"),
        ("inferior_vena_cava", "inferior vena cava"),
        ("portal_vein_and_splenic_vein", "portal and splenic veins"),
        ("IVD", "ivd"),
        ("enhancing tumour", "enhancing_tumor"),
    ],
)
def test_an_organ_keeps_its_colour_in_other_words(ours, theirs):
    assert class_colors({7: theirs, 2: "mystery"})[7] == ORGAN_COLORS[ours]


def test_an_organ_has_one_colour_in_two_bundles(btcv):
    in_btcv, in_all = class_colors(btcv), class_colors(ORGANS)
    assert [in_btcv[1], in_btcv[6], in_btcv[8]] == [in_all[1], in_all[5], in_all[25]]
    assert {in_btcv[2], in_btcv[3]} == {in_all[2], in_all[3]}


def hue_deg(organ):
    return 360 * colorsys.rgb_to_hsv(*(part / 255 for part in ORGAN_COLORS[organ]))[0]


def test_organs_have_the_hues_that_radiologists_expect():
    assert 10 < hue_deg("liver") < 30, "reddish brown"
    assert hue_deg("aorta") < 20, "red"
    assert 210 < hue_deg("inferior_vena_cava") < 240, "blue"
    assert 90 < hue_deg("gallbladder") < 160, "green"
    assert max(ORGAN_COLORS["liver"]) < 170, "dark, unlike muscle"


def test_touching_organs_differ_as_drawn():
    assert too_close(TOUCHING, 10) == {}


@pytest.mark.parametrize("gray", [0.0, 0.15, 0.85, 1.0])
def test_touching_organs_differ_over_dark_and_bright_tissue(gray):
    assert too_close(TOUCHING, 7.5, gray) == {}


def test_all_organs_of_btcv_differ_from_each_other(btcv):
    colors = class_colors(btcv)
    sides = {frozenset(pair) for pair in left_right_pairs(btcv)}
    pairs = [pair for pair in itertools.combinations(btcv, 2) if frozenset(pair) not in sides]
    assert distances([(colors[a], colors[b]) for a, b in pairs]).min() > 10


def test_left_and_right_differ_slightly():
    pairs = [(ORGANS[a], ORGANS[b]) for a, b in left_right_pairs(ORGANS)]
    assert too_close(pairs, 3) == {}


def test_every_organ_stands_out_from_gray():
    assert distances([(color, MID_GRAY) for color in ORGAN_COLORS.values()]).min() > 8


def test_unknown_names_get_distinct_colours_that_do_not_depend_on_ids():
    unknown = ["ureter", "appendix", "left lung", "right lung", "thymus", "diaphragm"]
    colors = class_colors({1: "liver", **dict(enumerate(unknown, start=2))})
    assert colors == class_colors({1: "liver", **dict(enumerate(unknown, start=2))})
    pairs = list(itertools.combinations(colors.values(), 2))
    assert distances(pairs).min() > 10
    shuffled = class_colors({90 - i: name for i, name in enumerate(unknown)} | {5: "liver"})
    assert [shuffled[90 - i] for i in range(len(unknown))] == [colors[i + 2] for i in range(len(unknown))]
    assert class_colors({1: "left lung", 2: "LUNG_left"})[1] == class_colors({1: "left lung", 2: "LUNG_left"})[2]


def test_many_unknown_names_get_distinct_colours():
    names = {i: f"structure {i}" for i in range(len(EXTRA_COLORS))} | {1000 + i: name for i, name in ORGANS.items()}
    colors = class_colors(names)
    assert len({colors[i] for i in range(len(EXTRA_COLORS))}) == len(EXTRA_COLORS)


def test_no_names_give_no_colours():
    assert class_colors({}) == {}
