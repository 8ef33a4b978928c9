import json
import re

import pytest

from scripts.common.errors import InputError
from scripts.common.organs import (
    IDS_OF_NAMES,
    ORGANS,
    contralateral_labels,
    foreground_classes,
    left_right_pairs,
    organ_ids,
    organ_name,
)
from tests.conftest import ROOT


def test_btcv_pairs_are_kidneys_and_adrenals():
    metadata = json.loads((ROOT / "bundles/swin_bob_btcv/configs/metadata.json").read_text())
    assert left_right_pairs(metadata["network_data_format"]["outputs"]["pred"]["channel_def"]) == [(2, 3), (12, 13)]


@pytest.mark.parametrize(
    ("channel_def", "message"),
    [
        ({"1": "right lung"}, "class 1 'right lung' has no contralateral class 'left lung': add it to channel_def."),
        (
            {"1": "left lung", "2": "left rib"},
            "classes [1, 2] are 'left' without a 'right' class: add it to channel_def.",
        ),
    ],
)
def test_unpaired_class_is_refused(channel_def, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        left_right_pairs({"0": "background", **channel_def})


def test_contralateral_labels_map_both_sides_to_each_other():
    labels = contralateral_labels({1: "liver", 2: "kidney_right", 3: "kidney_left"})
    assert labels == {2: 3, 3: 2}


def test_foreground_classes_are_ordered_by_id():
    assert list(foreground_classes({"10": "x", "2": "y"}).items()) == [(2, "y"), (10, "x")]
    assert list(foreground_classes({"2": "x", "0": "background", "1": "y"}).items()) == [(1, "y"), (2, "x")]


@pytest.mark.parametrize(
    ("channel_def", "message"),
    [
        (
            {"0": "background", "1": "a", "3": "b"},
            "channel_def has 3 classes, but not the index 2: leave no index out.",
        ),
        ({"1": "a", "2": "a"}, "channel_def has index 2 or name 'a' twice: give each class one of its own."),
        ({"1": "a", "01": "b"}, "channel_def has index 01 or name 'b' twice: give each class one of its own."),
        ({"one": "a"}, "channel_def names the index 'one' 'a': give whole numbers from 0 and text."),
        ({"-1": "a"}, "channel_def names the index '-1' 'a': give whole numbers from 0 and text."),
        ({1.5: "a"}, "channel_def names the index 1.5 'a': give whole numbers from 0 and text."),
        ({"1": None}, "channel_def names the index '1' None: give whole numbers from 0 and text."),
        ({"1": " "}, "channel_def names the index '1' ' ': give whole numbers from 0 and text."),
    ],
)
def test_bad_channel_def_is_refused(channel_def, message):
    for use in (foreground_classes, left_right_pairs):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            use(channel_def)


def test_organs_are_those_of_vibesegmentator():
    assert list(ORGANS) == list(range(1, 73))
    known = {1: "spleen", 24: "heart", 32: "brachiocephalic_vein_left", 52: "spinal_cord", 68: "IVD", 72: "bone_other"}
    assert {label: ORGANS[label] for label in known} == known


def test_every_sided_organ_but_two_is_paired():
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


def test_every_organ_keeps_its_name_and_every_known_name_its_id():
    assert [organ_name(name) for name in ORGANS.values()] == list(ORGANS.values())
    for name, label in IDS_OF_NAMES.items():
        assert organ_ids(name) == (label,), name


def test_all_classes_of_btcv_are_organs():
    metadata = json.loads((ROOT / "bundles/swin_bob_btcv/configs/metadata.json").read_text())
    names = foreground_classes(metadata["network_data_format"]["outputs"]["pred"]["channel_def"]).values()
    assert [organ_ids(name) for name in names] == [
        *((1,), (2,), (3,), (4,), (15,), (5,), (6,), (25,), (36,), (37,), (7,), (8,), (9,))
    ]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("left adrenal gland", (9,)),
        ("adrenal gland left", (9,)),
        ("Adrenal-Gland L", (9,)),
        ("gall bladder", (4,)),
        ("postcava", (36,)),
        ("bladder", (21,)),
        ("prostate/uterus", (22,)),
        ("lung_right", (12, 13, 14)),
        ("rib_left_7", (20,)),
        ("ivd", (68,)),
        ("kidney_cyst_left", ()),
        ("vertebrae_L1", ()),
        ("background", ()),
    ],
)
def test_names_of_other_data_sets(name, ids):
    assert organ_ids(name) == ids
