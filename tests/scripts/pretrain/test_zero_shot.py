import json
import re

import pytest
import torch

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.pretrain.zero_shot import MapToTargetd, Matching, target_classes
from tests.conftest import ROOT, SHARED_DATA

CHANNEL_DEF = {"0": "background", **{str(label): name for label, name in ORGANS.items()}}


def test_btcv_and_amos_have_a_counterpart_each():
    btcv, amos = Matching(CHANNEL_DEF, "btcv"), Matching(CHANNEL_DEF, "amos")
    assert btcv.num_classes == 14
    assert btcv.of_pred[5] == 6
    assert btcv.missing == amos.missing == []
    assert amos.num_classes == 16
    assert {amos.of_pred[19], amos.of_pred[21], amos.of_pred[22]} == {13, 14, 15}


def test_btcv_is_that_of_its_bundle():
    metadata = json.loads((ROOT / "bundles/swin_bob_btcv/configs/metadata.json").read_text())
    names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert target_classes("btcv") == {int(label): name for label, name in names.items() if label != "0"}


def test_totalsegmentator_is_that_of_its_own_table():
    file = SHARED_DATA / "ct_torso" / "totalsegmentator_ct_classes.json"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    assert target_classes("totalsegmentator") == target_classes(str(file))


def test_what_the_network_does_not_tell_apart_counts_as_one(caplog):
    matching = Matching(CHANNEL_DEF, "totalsegmentator")
    assert matching.scored[18] == "intestine"
    assert matching.scored[92] == "rib"
    assert matching.of_label[20] == 18
    assert {"brain", "skull", "kidney_cyst_left", "vertebrae_L1"} <= set(matching.missing)
    assert "left out, for they have no counterpart: kidney_cyst_left" in caplog.text
    assert "count as one, intestine, for the network does not tell them apart: small_bowel, colon" in caplog.text


def test_several_classes_of_the_network_make_up_one():
    matching = Matching(CHANNEL_DEF, {"1": "lung_left", "2": "lung_right", "3": "vertebrae"})
    pred = torch.tensor([[10, 11, 12, 13, 14, 69, 70, 1, 0]])
    done = MapToTargetd(["pred", "label"], matching=matching)({"pred": pred})
    assert done["pred"].tolist() == [[1, 1, 2, 2, 2, 3, 3, 0, 0]]


def test_labels_and_predictions_get_the_same_numbers():
    matching = Matching(CHANNEL_DEF, {"0": "background", "1": "colon", "3": "small_bowel", "4": "brain", "5": "liver"})
    assert matching.scored == {1: "intestine", 5: "liver"}
    given = {"pred": torch.tensor([[18, 5, 66]]), "label": torch.tensor([[3.0, 1, 4, 5, 0, 255]])}
    done = MapToTargetd(["pred", "label"], matching=matching)(given)
    assert done["pred"].tolist() == [[1, 5, 0]]
    assert done["label"].tolist() == [[1, 1, 0, 5, 0, 255]]
    assert done["label"].dtype == torch.float32


def test_network_that_lacks_a_part_has_no_counterpart():
    matching = Matching(
        {"0": "background", "1": "lung_upper_lobe_left", "2": "liver"}, {"1": "lung_left", "2": "liver"}
    )
    assert matching.missing == ["lung_left"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("btvc", "target is 'btvc': give btcv, amos, totalsegmentator or a .json file of names; did you mean btcv?"),
        ("none.json", "none.json: holds no names ("),
        ({"1": "brain"}, "target: none of its 1 classes is one of the network's, such as spleen"),
        ({"1": "lung_left", "2": "lung_upper_lobe_left"}, "target: lung_upper_lobe_left is part of several"),
        ({"x": "liver"}, "channel_def names the index 'x' 'liver'"),
    ],
)
def test_bad_target_is_refused(target, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        Matching(CHANNEL_DEF, target)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"0": "background"}', '"spleen"', '{"1": 5}', '{"1.5": "liver"}', '{"1": "a", "2": "a"}']
)
def test_file_that_holds_no_names_is_refused(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(InputError, match=r"names.json: (holds no names|channel_def)"):
        Matching(CHANNEL_DEF, str(tmp_path / "names.json"))
