import copy
import re

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2
from monai.networks.utils import copy_model_state

from scripts.common.errors import InputError
from scripts.models.swin_unetr import (
    SLICE_OFFSETS,
    CurrentPatchMerging,
    LegacyPatchMerging,
    adapt_input_channels,
    patch_merging,
)
from tests.conftest import ROOT
from tests.scripts.models.tiny_networks import assert_equal_states, plain_state, tiny
from tools import legacy_fixture

FIXTURE = ROOT / "tests" / "fixtures" / "legacy_patch_merging.npz"


@pytest.fixture(scope="module")
def monai_1_4():
    with np.load(FIXTURE) as numbers:
        assert str(numbers["monai"]) == "1.4.0"
        return {"merged": numbers["merged"], "logits": numbers["logits"]}


def outputs(merging):
    network = SwinUNETR(**legacy_fixture.TINY_NETWORK, downsample=merging)
    return legacy_fixture.outputs(merging(legacy_fixture.FEATURES_SHAPE[-1]), network)


def test_legacy_merging_and_network_compute_what_monai_1_4_does(monai_1_4):
    ours = outputs(patch_merging(legacy=True))
    for name, expected in monai_1_4.items():
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-7, err_msg=name)


def test_current_merging_and_network_compute_something_else(monai_1_4):
    current = outputs(patch_merging(legacy=False))
    for name, expected in monai_1_4.items():
        assert current[name].shape == expected.shape
        assert np.abs(current[name] - expected).max() > 0.1 * expected.std()


@pytest.mark.parametrize(
    ("shape", "merged"),
    [((4, 4, 4), (2, 2, 2)), ((5, 4, 4), (3, 2, 2)), ((4, 3, 4), (2, 2, 2)), ((3, 5, 7), (2, 3, 4))],
)
def test_odd_sizes_are_padded_by_zeros_at_the_end(shape, merged):
    layer = legacy_fixture.fill_by_formula(LegacyPatchMerging(6))
    features = legacy_fixture.wave((1, *shape, 6), 0.0)
    padded = torch.zeros(1, *(2 * size for size in merged), 6, dtype=torch.float64)
    padded[:, : shape[0], : shape[1], : shape[2]] = features
    assert layer(features).shape == (1, *merged, 12)
    torch.testing.assert_close(layer(features), layer(padded))


def test_each_slice_is_the_voxel_at_its_offset():
    layer = LegacyPatchMerging(1).double()
    layer.norm = layer.reduction = torch.nn.Identity()
    block = torch.arange(8, dtype=torch.float64).reshape(1, 2, 2, 2, 1)
    assert layer(block).flatten().tolist() == [0, 4, 2, 1, 5, 2, 1, 7]


def test_legacy_merging_in_2d_is_its_parent_without_the_marker():
    layer = LegacyPatchMerging(6, spatial_dims=2)
    parent = PatchMergingV2(6, spatial_dims=2)
    parent.load_state_dict(layer.state_dict())
    layer.load_state_dict(parent.state_dict())
    features = torch.rand(1, 5, 4, 6)
    torch.testing.assert_close(layer(features), parent(features))


TRAINED_WITH_LEGACY = "weights trained with the patch merging of MONAI < 1.5; set legacy_merging to true."
NOT_MARKED = (
    "weights not marked as trained with the patch merging of MONAI < 1.5; set legacy_merging to false or, if it was, "
    "convert the file first: python -m scripts.convert_weights SOURCE models/model.pt"
)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("legacy", "message"), [(False, TRAINED_WITH_LEGACY), (True, NOT_MARKED)])
def test_network_refuses_weights_of_the_other_merging(strict, legacy, message):
    network, other = tiny(legacy=legacy), tiny(legacy=not legacy)
    with pytest.raises(RuntimeError, match="in loading state_dict for SwinUNETR") as refused:
        network.load_state_dict(other.state_dict(), strict=strict)
    assert str(refused.value).count(message) == 1


@pytest.mark.parametrize("legacy", [True, False])
def test_copied_network_refuses_weights_of_the_other_merging(legacy):
    network, other = copy.deepcopy(tiny(legacy=legacy)), tiny(legacy=not legacy)
    with pytest.raises(RuntimeError, match=r"the patch merging of MONAI < 1\.5"):
        network.load_state_dict(other.state_dict(), strict=False)


@pytest.mark.parametrize("legacy", [True, False])
def test_training_state_is_refused_as_weights_although_not_strict(legacy):
    """MONAI Label loads with strict=False whatever file it finds."""
    network = tiny(legacy=legacy)
    message = "weights without those of the patch merging; give the file of all weights, model.pt."
    with pytest.raises(RuntimeError, match=re.escape(message)):
        network.load_state_dict({"network": network.state_dict(), "epoch": 3}, strict=False)


def test_copied_tensors_of_legacy_weights_are_refused():
    """`monai.bundle.load` copies the tensors that the network has too."""
    network, legacy = tiny(legacy=False), tiny(legacy=True)
    with pytest.raises(RuntimeError, match="set legacy_merging to true"):
        copy_model_state(network, legacy.state_dict())


def test_weights_of_plain_monai_load_into_the_current_network_and_back():
    plain = SwinUNETR(**legacy_fixture.TINY_NETWORK, downsample="merging")
    network = SwinUNETR(**legacy_fixture.TINY_NETWORK, downsample=patch_merging(legacy=False))
    network.load_state_dict(plain.state_dict())
    assert_equal_states(plain_state(network), plain.state_dict())
    SwinUNETR(**legacy_fixture.TINY_NETWORK).load_state_dict(plain_state(network))
    found = SwinUNETR(**legacy_fixture.TINY_NETWORK).load_state_dict(network.state_dict(), strict=False)
    assert found.missing_keys == []
    assert {key.rpartition(".")[2] for key in found.unexpected_keys} == {"slice_offsets"}
    image = torch.rand(legacy_fixture.IMAGE_SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), plain.eval()(image), rtol=0, atol=0)


def test_plain_state_of_a_legacy_network_keeps_its_markers():
    network = tiny(legacy=True)
    assert_equal_states(plain_state(network), network.state_dict())


def test_current_offsets_are_those_of_monai():
    layer = PatchMerging(1).double()
    layer.norm = layer.reduction = torch.nn.Identity()
    block = torch.arange(8, dtype=torch.float64).reshape(1, 2, 2, 2, 1)
    assert layer(block).flatten().tolist() == [block[0, d, h, w].item() for d, h, w in SLICE_OFFSETS]


def test_plain_monai_network_refuses_legacy_weights():
    plain = SwinUNETR(**legacy_fixture.TINY_NETWORK)
    legacy = SwinUNETR(**legacy_fixture.TINY_NETWORK, downsample=LegacyPatchMerging)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*slice_offsets"):
        plain.load_state_dict(legacy.state_dict())


def test_slice_offsets_stay_integers_in_half_precision():
    layer = LegacyPatchMerging(6).half()
    assert layer.slice_offsets.dtype == torch.uint8
    assert layer.slice_offsets.shape == (8, 3)


def test_features_of_another_rank_are_refused():
    message = "patch merging got a tensor of shape (4, 4, 6): pass (B, D, H, W, C) or (B, H, W, C)."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        LegacyPatchMerging(6)(torch.zeros(4, 4, 6))


@pytest.mark.parametrize("legacy", [True, "true", "True"])
def test_legacy_may_come_as_text_from_the_command_line(legacy):
    assert patch_merging(legacy) is LegacyPatchMerging


@pytest.mark.parametrize("legacy", [False, "false", "False"])
def test_the_text_false_is_not_legacy(legacy):
    assert patch_merging(legacy) is CurrentPatchMerging


@pytest.mark.parametrize("legacy", ["yes", "", None, 1])
def test_other_values_of_legacy_merging_are_refused(legacy):
    with pytest.raises(InputError, match=f"^legacy_merging is {legacy!r}: give true or false\\.$"):
        patch_merging(legacy)


@pytest.mark.parametrize(("given", "merging"), [("true", LegacyPatchMerging), ("false", CurrentPatchMerging)])
def test_a_config_chooses_the_merging(given, merging):
    config = {
        "legacy_merging": given,
        "network_def": {
            "_target_": "SwinUNETR",
            "downsample": {"_target_": "scripts.models.swin_unetr.patch_merging", "legacy": "@legacy_merging"},
            **legacy_fixture.TINY_NETWORK,
        },
    }
    network = ConfigParser(config).get_parsed_content("network_def")
    assert type(network.swinViT.layers4[0].downsample) is merging


@pytest.mark.parametrize(("given", "wanted"), [(1, 4), (4, 1), (3, 2)])
def test_adapted_convolution_has_the_same_response_to_replicated_images(given, wanted):
    weight = torch.rand(5, given, 3, 3, 3, dtype=torch.float64)
    image = torch.rand(1, 1, 6, 6, 6, dtype=torch.float64)
    adapted = adapt_input_channels(weight, in_channels=wanted)
    assert adapted.shape == (5, wanted, 3, 3, 3)
    before = torch.nn.functional.conv3d(image.expand(-1, given, -1, -1, -1), weight)
    after = torch.nn.functional.conv3d(image.expand(-1, wanted, -1, -1, -1), adapted)
    torch.testing.assert_close(after, before)


def test_adapting_to_one_channel_sums_and_from_one_divides():
    weight = torch.rand(5, 3, 2, 2, 2)
    summed = adapt_input_channels(weight, in_channels=1)
    torch.testing.assert_close(summed, weight.sum(dim=1, keepdim=True))
    spread = adapt_input_channels(weight[:, :1], in_channels=4)
    torch.testing.assert_close(spread, weight[:, :1].repeat(1, 4, 1, 1, 1) / 4)
