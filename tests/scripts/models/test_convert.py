import logging
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR

from scripts.common.errors import InputError
from scripts.common.locks import FolderLock
from scripts.models.convert import convert, main
from scripts.models.swin_unetr import is_legacy, patch_merging
from scripts.models.weights import load_weights
from tests.conftest import ROOT
from tests.scripts.models.tiny_networks import plain_state

TINY = {
    "in_channels": 2,
    "out_channels": 3,
    "feature_size": 12,
    "patch_size": 2,
    "depths": (1, 2, 1, 1),
    "num_heads": (1, 2, 1, 3),
    "window_size": 4,
    "spatial_dims": 3,
    "use_v2": False,
}


def tiny(*, seed=0, legacy=False, **changes):
    torch.manual_seed(seed)
    return SwinUNETR(**(TINY | changes), downsample=patch_merging(legacy))


def published(path, network, **others):
    """Save as the trainer of MONAI's research contributions does, wrapped for several GPUs."""
    state = {f"module.{key}": value for key, value in plain_state(network).items()}
    torch.save({"epoch": 4999, "best_acc": np.float64(0.82), "state_dict": state} | others, path)
    return path


@pytest.mark.parametrize(
    "changes",
    [{}, {"window_size": 3, "out_channels": 14}, {"use_v2": True}, {"patch_size": 3}, {"spatial_dims": 2}],
    ids=["tiny", "window of 3", "v2", "patches of 3", "2-D"],
)
def test_network_arguments_are_read_from_the_shapes(tmp_path, changes):
    path = published(tmp_path / "in.pt", tiny(**changes))
    assert convert(path, tmp_path / "out.pt", legacy_merging=False) == TINY | changes


@pytest.mark.parametrize("legacy", [True, False])
def test_converted_weights_load_strictly_into_their_kind_of_network(tmp_path, legacy):
    trained, target = tiny(seed=1), tmp_path / "models" / "model.pt"
    options = ["--legacy_merging", str(legacy).lower()]
    assert main([str(published(tmp_path / "in.pt", trained)), str(target), *options]) == 0
    network = tiny(legacy=legacy)
    network.load_state_dict(torch.load(target, weights_only=True))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in plain_state(trained).items())
    with pytest.raises(InputError, match="set legacy_merging to"):
        load_weights(tiny(legacy=not legacy), target)


def test_legacy_merging_is_the_default(tmp_path):
    target = tmp_path / "model.pt"
    assert main([str(published(tmp_path / "in.pt", tiny())), str(target)]) == 0
    assert is_legacy(torch.load(target, weights_only=True))


def test_two_dimensional_weights_are_not_marked_as_all_versions_agree_on_them(tmp_path):
    target = tmp_path / "model.pt"
    convert(published(tmp_path / "in.pt", tiny(spatial_dims=2)), target, legacy_merging=True)
    load_weights(tiny(seed=1, spatial_dims=2), target)


def test_converting_twice_changes_nothing(tmp_path):
    once, twice = tmp_path / "once.pt", tmp_path / "twice.pt"
    convert(published(tmp_path / "in.pt", tiny()), once, legacy_merging=True)
    convert(once, twice, legacy_merging=True)
    first, second = torch.load(once, weights_only=True), torch.load(twice, weights_only=True)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_shortcuts_that_monai_0_8_never_used_are_dropped(tmp_path):
    network = tiny()
    state = plain_state(network) | {"encoder2.layer.conv3.conv.weight": torch.rand(12, 12, 1, 1, 1)}
    torch.save({"state_dict": state}, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "out.pt", legacy_merging=False)
    assert torch.load(tmp_path / "out.pt", weights_only=True).keys() == network.state_dict().keys()


def encoder_only(path):
    state = {key: value for key, value in plain_state(tiny()).items() if key.startswith("swinViT.")}
    torch.save(state, path)


def without_a_tensor(path):
    state = plain_state(tiny())
    del state["decoder1.transp_conv.conv.weight"]
    torch.save(state, path)


def changed(key, change):
    def write(path):
        state = plain_state(tiny())
        torch.save(state | {key: change(state[key])}, path)

    return write


def with_names(name, count):
    return lambda path: torch.save(plain_state(tiny()) | {name.format(n): torch.zeros(1) for n in range(count)}, path)


BIAS_TABLE = "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"
STRICT = "give the network the settings that the file was trained with, or use the file as pretrained weights."


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (lambda path: None, (), "no such file: give the path of the weights."),
        (
            lambda path: path.write_text("not weights"),
            (),
            "not a PyTorch checkpoint, or corrupted: download or save it again.",
        ),
        (
            lambda path: published(path, tiny(), args=Path("x")),
            (),
            "holds pickled code (pathlib.PosixPath), refused because loading it could execute code: if you trust its "
            "source, save only its state dict and give that file.",
        ),
        (
            encoder_only,
            (),
            "not a whole SwinUNETR, out.conv.conv.weight is missing: an encoder's weights need no "
            "conversion, give them to the training as pretrained weights.",
        ),
        (
            without_a_tensor,
            (),
            "weights of another network: 1 of 117 tensors missing, 0 unexpected, 0 of another shape (first: "
            f"decoder1.transp_conv.conv.weight is missing); {STRICT}",
        ),
        (
            lambda path: torch.save(tiny(legacy=True).state_dict(), path),
            ("--legacy_merging", "false"),
            "trained with the patch merging of MONAI < 1.5; set legacy_merging to true.",
        ),
        (
            changed("out.conv.conv.weight", lambda t: t * torch.nan),
            (),
            "out.conv.conv.weight holds 36 values that are not finite: give other weights, or download or save them "
            "again.",
        ),
        (
            changed(BIAS_TABLE, lambda t: t[0, 0]),
            (),
            f"not a SwinUNETR, {BIAS_TABLE} is of shape (): give a file of its weights.",
        ),
        (
            changed("swinViT.patch_embed.proj.weight", lambda t: t[:, :, 0, 0]),
            (),
            "not a SwinUNETR, swinViT.patch_embed.proj.weight is of shape (12, 2, 2): give a file of its weights.",
        ),
        (
            changed("swinViT.patch_embed.proj.weight", lambda t: t[..., :0]),
            (),
            "not a SwinUNETR, swinViT.patch_embed.proj.weight is of shape (12, 2, 2, 2, 0): "
            "give a file of its weights.",
        ),
        (
            changed("swinViT.patch_embed.proj.weight", lambda t: t[:10].clone()),
            (),
            "its shapes are those of no SwinUNETR: in_channels=2, out_channels=3, feature_size=10, patch_size=2, "
            "depths=(1, 2, 1, 1), num_heads=(1, 2, 1, 3), window_size=4, spatial_dims=3, use_v2=False (feature_size "
            "should be divisible by 12.): give a file of its weights.",
        ),
        (
            changed("swinViT.patch_embed.proj.weight", lambda t: torch.zeros(60_000, 2, 2, 2, 2)),
            (),
            "weights of another network: 0 of 117 tensors missing, 0 unexpected, 105 of another shape (first: "
            f"swinViT.patch_embed.proj.bias: file (12,), network (60000,)); {STRICT}",
        ),
        (
            with_names("swinViT.layers1.0.blocks.{}.x", 3000),
            (),
            "not a whole SwinUNETR, most tensors of its 3004 blocks are missing.",
        ),
    ],
    ids=[
        "missing",
        "text",
        "pickled code",
        "encoder",
        "incomplete",
        "marked as legacy",
        "NaN",
        "no window",
        "1-D",
        "no patch",
        "no feature size",
        "60,000 features",
        "3000 blocks",
    ],
)
def test_bad_input_exits_with_2_logs_the_reason_and_writes_nothing(tmp_path, caplog, write, options, message):
    source, target = tmp_path / "in.pt", tmp_path / "out" / "model.pt"
    write(source)
    assert main([str(source), str(target), *options]) == 2
    assert [record.getMessage() for record in caplog.records] == [f"{source}: {message}"]
    assert not target.parent.exists()


@pytest.mark.parametrize("name", ["", "model", "model.onnx"])
def test_target_must_end_in_pt(tmp_path, name):
    target = tmp_path / name
    message = f"{target}: not a name for weights: give a path that ends in .pt."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        convert(tmp_path / "in.pt", target, legacy_merging=True)


@pytest.mark.parametrize("kind", ["itself", "hard link", "folder"])
def test_target_that_would_lose_something_is_refused(tmp_path, caplog, kind):
    source, target = published(tmp_path / "in.pt", tiny()), tmp_path / "out.pt"
    if kind == "folder":
        target.mkdir()
    elif kind == "hard link":
        target.hardlink_to(source)
    else:
        target = source
    before = source.read_bytes()
    assert main([str(source), str(target)]) == 2
    what = "a folder" if kind == "folder" else "the source itself"
    assert caplog.messages == [f"{target}: is {what}: give another file."]
    assert source.read_bytes() == before


def test_target_in_a_folder_that_a_training_writes_to_is_refused(tmp_path, caplog):
    with FolderLock(tmp_path / "models"):
        assert main([str(published(tmp_path / "in.pt", tiny())), str(tmp_path / "models" / "model.pt")]) == 2
    assert "models: another run is using this folder" in caplog.text


def test_network_that_the_file_asks_for_is_not_built_before_its_shapes_fit(tmp_path, monkeypatch):
    """A window of 50 makes an index of 125 GB in every block."""
    changes = {BIAS_TABLE: torch.zeros(99**3, 1)}
    torch.save(plain_state(tiny()) | changes, tmp_path / "in.pt")
    with pytest.raises(InputError, match=r"relative_position_index: file \(64, 64\), network \(125000, 125000\)"):
        convert(tmp_path / "in.pt", tmp_path / "out.pt", legacy_merging=True)


@pytest.mark.parametrize("error", [OSError("disk is slow\nand more"), RuntimeError("disk is slow\nat writer.cc")])
def test_target_that_cannot_be_written_is_named(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    source, target = published(tmp_path / "in.pt", tiny()), tmp_path / "out.pt"
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=r"out\.pt: cannot be written \(disk is slow\): free disk space, or give"):
        convert(source, target, legacy_merging=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_interrupted_command_ends_with_130_and_leaves_nothing(tmp_path, caplog, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    source = published(tmp_path / "in.pt", tiny())
    monkeypatch.setattr(torch, "save", interrupt)
    assert main([str(source), str(tmp_path / "out" / "model.pt")]) == 130
    assert caplog.messages == ["stopped, nothing was written"]
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_log_names_the_network_and_the_setting_to_use_it_with(tmp_path, caplog):
    target = tmp_path / "model.pt"
    with caplog.at_level(logging.INFO):
        main([str(published(tmp_path / "in.pt", tiny())), str(target)])
    assert [record.getMessage() for record in caplog.records] == [
        f"wrote {target}, weights of SwinUNETR(in_channels=2, out_channels=3, feature_size=12, patch_size=2, "
        "depths=(1, 2, 1, 1), num_heads=(1, 2, 1, 3), window_size=4, spatial_dims=3, use_v2=False)",
        "use it with --legacy_merging true",
    ]


def test_command_exits_with_2_on_bad_input(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert_weights", str(tmp_path / "absent.pt"), str(tmp_path / "out.pt")])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(ROOT / "scripts/convert_weights.py"), run_name="__main__")
    assert leaving.value.code == 2
