import json

import pytest

from scripts.labels import IDS_OF_NAMES, ORGANS, foreground_classes, left_right_pairs
from tests.conftest import ROOT


def test_btcv_pairs_are_kidneys_and_adrenals():
    metadata = json.loads((ROOT / "bundles/swin_bob_btcv/configs/metadata.json").read_text())
    assert left_right_pairs(metadata["network_data_format"]["outputs"]["pred"]["channel_def"]) == [(2, 3), (12, 13)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_side_without_a_partner_is_refused(side):
    with pytest.raises(ValueError, match=r"partner"):
        left_right_pairs({"0": "background", "1": f"{side} lung"})


def test_foreground_classes_are_ordered_by_id():
    assert list(foreground_classes({"10": "x", "0": "background", "2": "y"}).items()) == [(2, "y"), (10, "x")]


def test_organs_are_those_of_vibesegmentator():
    assert list(ORGANS) == list(range(1, 73))
    known = {1: "spleen", 24: "heart", 32: "brachiocephalic_vein_left", 52: "spinal_cord", 68: "IVD", 72: "bone_other"}
    assert {label: ORGANS[label] for label in known} == known


def test_every_sided_organ_but_two_has_its_partner():
    pairs = left_right_pairs(ORGANS)
    assert len(pairs) == 19
    assert (2, 3) in pairs
    assert (12, 10) in pairs
    sided = {name for name in ORGANS.values() if {"left", "right"} & set(name.split("_"))}
    assert sided - {ORGANS[label] for pair in pairs for label in pair} == {
        "atrial_appendage_left",
        "lung_middle_lobe_right",
    }


@pytest.mark.parametrize(
    ("name", "organ"),
    [
        ("colon", "intestine"),
        ("rib_right_12", "rib"),
        ("intervertebral_discs", "IVD"),
        ("torso_fat", "inner_fat"),
        ("hip_left", "hip_left"),
    ],
)
def test_names_of_totalsegmentator_find_their_organ(name, organ):
    assert ORGANS[IDS_OF_NAMES[name]] == organ


@pytest.mark.parametrize("name", ["vertebrae_L1", "lung_left", "kidney_cyst_left", "brain"])
def test_names_without_a_counterpart_are_left_out(name):
    assert name not in IDS_OF_NAMES
