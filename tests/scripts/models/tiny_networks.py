"""Tiny networks and files of their weights, for tests."""

import torch
from monai.networks.nets import SwinUNETR

from scripts.models.segvol import SegVol
from scripts.models.swin_unetr import is_legacy, is_marker, patch_merging
from scripts.models.ultrabones import UltraBones
from tests.conftest import TINY_OF

PATCH_EMBEDDING = "swinViT.patch_embed.proj.weight"


TINY_NETWORK = {
    "in_channels": 1,
    "out_channels": 3,
    "feature_size": 12,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 4,
}


def tiny_of(bundle):
    """Return the network of a bundle at the size of its tests, with random weights."""
    sizes = {key.removeprefix("network_def#"): n for key, n in TINY_OF[bundle].items() if "network_def" in key}
    torch.manual_seed(0)
    return {"segvol": SegVol, "ultrabones": UltraBones}[bundle](**sizes).eval()


def tiny(*, seed=0, legacy=False, **changes):
    torch.manual_seed(seed)
    return SwinUNETR(**TINY_NETWORK | changes, downsample=patch_merging(legacy)).eval()


def plain_state(network):
    """Return the state dict of a plain SwinUNETR: without the markers, unless they are those of legacy merging."""
    state = network.state_dict()
    return state if is_legacy(state) else {key: tensor for key, tensor in state.items() if not is_marker(key)}


def state_of(**options):
    return plain_state(tiny(**options))


def saved(path, content):
    torch.save(content, path)
    return path


def assert_equal_states(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def self_supervised(state):
    """Rename as in MONAI's model_swinvit.pt, the inverse of what SwinUNETR.load_from reads."""
    encoder = {
        key.replace("swinViT.", "module.").replace(".mlp.linear", ".mlp.fc"): value
        for key, value in state.items()
        if key.startswith("swinViT.")
    }
    heads = {
        "module.rotation_head.weight": torch.rand(4, 192),
        "module.contrastive_head.weight": torch.rand(512, 192),
        "module.convTrans3d.weight": torch.rand(192, 1, 2, 2, 2),
    }
    return {"state_dict": encoder | heads, "epoch": 7, "optimizer": {"param_groups": [{"lr": 1e-4}]}}


TINY_SEGVOL = {
    "spatial_size": [16, 32, 48],
    "patch_size": [4, 8, 8],
    "hidden_size": 16,
    "mlp_dim": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_heads": 2,
    "decoder_mlp_dim": 12,
    "text_width": 8,
    "text_layers": 2,
    "text_heads": 2,
    "text_mlp_dim": 12,
}


def tiny_segvol(*, seed=0, **changes):
    torch.manual_seed(seed)
    return SegVol(**TINY_SEGVOL | changes).eval()
