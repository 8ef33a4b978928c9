import json

import pytest

from scripts.labels import foreground_classes, left_right_pairs
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
