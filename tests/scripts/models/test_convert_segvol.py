import argparse
import os

import pytest
import torch
from monai.networks.nets import ViT

from scripts.common.errors import InputError
from scripts.models import convert_segvol
from scripts.models.convert_segvol import main
from scripts.models.pretrained import load_pretrained
from scripts.models.segvol import TOWER, TOWER_MARK, SegVol, image_encoder
from scripts.models.text_features import TextFeatures
from scripts.models.weights import load_weights
from tests.scripts.models.tiny_networks import TINY_SEGVOL, saved, tiny_segvol

ENCODER = {key: TINY_SEGVOL[key] for key in ("hidden_size", "mlp_dim", "num_layers", "num_heads")}


def tiny_encoder():
    return image_encoder(TINY_SEGVOL["spatial_size"], TINY_SEGVOL["patch_size"], **ENCODER)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The published network is large; its names are tested with the network."""
    monkeypatch.setattr(convert_segvol, "SegVol", lambda: SegVol(**TINY_SEGVOL))
    monkeypatch.setattr(convert_segvol, "_encoder", tiny_encoder)


def published(state):
    """As the published trainer saves it, with the buffer of old versions of transformers."""
    positions = {"module.text_encoder.clip_text_model.text_model.embeddings.position_ids": torch.arange(77)[None]}
    wrapped = {f"module.{key}": value for key, value in state.items()} | positions
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}
    return {"model": wrapped, "optimizer": optimizer, "epoch": 3, "scheduler": {"last_epoch": 3}}


def hugging_face(state):
    return {f"model.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("form", [published, hugging_face, dict])
def test_published_files_become_weights_that_load_strictly(tmp_path, form):
    trained, other = tiny_segvol(seed=1), tiny_segvol(seed=2)
    target = tmp_path / "models" / "model.pt"
    assert main([str(saved(tmp_path / "SegVol_v1.pth", form(trained.state_dict()))), str(target)]) == 0
    load_weights(other, target)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in trained.state_dict().items())
    assert list(torch.load(target, weights_only=True)) == list(trained.state_dict())


@pytest.mark.parametrize("prefix", ["", "image_encoder.", "vit."])
def test_pretrained_encoder_is_written_under_the_names_of_a_vit(tmp_path, prefix):
    encoder = tiny_encoder()
    lightning = {f"model.encoder.{key}": value for key, value in encoder.state_dict().items()}
    content = {"state_dict": {**lightning, "model.decoder.weight": torch.zeros(2)}, "epoch": 1}
    target = tmp_path / "vit.pt"
    assert main([str(saved(tmp_path / "ViT_pretrain.ckpt", content)), str(target), "--prefix", prefix]) == 0
    written = {key.removeprefix(prefix): value for key, value in torch.load(target, weights_only=True).items()}
    plain = ViT(1, TINY_SEGVOL["spatial_size"], TINY_SEGVOL["patch_size"], proj_type="perceptron", **ENCODER)
    missing, unexpected = plain.load_state_dict(written, strict=False)
    assert unexpected == []
    assert all("norm_cross_attn" in key for key in missing)


class Callback:
    """A class that the reader does not have."""

    def __init__(self):
        self.best_model_path = "/somewhere/epoch=3.ckpt"


class Hostile:
    """Makes a folder when it is unpickled as usual."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def lightning(**more):
    """As Lightning saves it, with objects of the trainer's own classes."""
    state = {f"model.encoder.{key}": value for key, value in tiny_encoder().state_dict().items()}
    hyper_parameters = argparse.Namespace(lr=1e-4, device=torch.device("cpu"))
    content = {"state_dict": state, "hyper_parameters": hyper_parameters, "callbacks": {Callback: Callback()}}
    return {**content, "rng": torch.get_rng_state(), **more}


@pytest.mark.parametrize(
    "more", [{}, {"extra": Hostile()}, {"callbacks": {Hostile(): 1}}, {"hyper_parameters": {"a": [Hostile()]}}]
)
def test_objects_beside_the_weights_of_a_checkpoint_are_not_made(tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(4)
    source = saved(tmp_path / "ViT_pretrain.ckpt", lightning(**more))
    monkeypatch.delattr(f"{__name__}.Callback")
    assert main([str(source), "vit.pt"]) == 0
    torch.manual_seed(4)
    expected, written = tiny_encoder().state_dict(), torch.load("vit.pt", weights_only=True)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], value) for key, value in expected.items())
    assert not (tmp_path / "ran").exists()


def test_objects_beside_the_whole_network_are_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = tiny_segvol(seed=1)
    source = saved(tmp_path / "SegVol_v1.pth", {**published(trained.state_dict()), "scheduler": Hostile()})
    assert main([str(source), "model.pt"]) == 0
    load_weights(other := tiny_segvol(seed=2), "model.pt")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in trained.state_dict().items())
    assert not (tmp_path / "ran").exists()


def test_features_of_the_organs_texts_are_stored(tmp_path, monkeypatch):
    trained = tiny_segvol(seed=1)
    source = saved(tmp_path / "in.pth", published(trained.state_dict()))
    assert main([str(source), str(tmp_path / "model.pt"), "--text_features", str(tmp_path / "texts.pt")]) == 0
    computed = TextFeatures()(trained, ["left kidney"])
    monkeypatch.setattr("scripts.models.text_features.tokenize", None)
    torch.testing.assert_close(TextFeatures(tmp_path / "texts.pt")(trained, ["left kidney"]), computed)


def test_weights_without_the_text_tower_load_into_a_network_without_it(tmp_path, monkeypatch):
    trained, texts = tiny_segvol(seed=1), tmp_path / "texts.pt"
    source = saved(tmp_path / "in.pth", published(trained.state_dict()))
    stored = ["--text_features", str(texts), "--texts", "Liver  tumor", "cyst"]
    assert main([str(source), str(tmp_path / "model.pt"), *stored, "--text_tower", "false"]) == 0
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    assert [key for key in written if key.startswith(TOWER)] == [TOWER_MARK]
    computed = TextFeatures()(trained, ["liver tumor", "cyst", "portal and splenic veins"])
    load_weights(small := tiny_segvol(seed=2, text_tower=False), tmp_path / "model.pt")
    monkeypatch.setattr("scripts.models.text_features.tokenize", None)
    found = TextFeatures(texts)(small, ["liver tumor", "cyst", "portal and splenic veins"])
    torch.testing.assert_close(found, computed)
    for load in (load_weights, load_pretrained):
        with pytest.raises(InputError, match=r"model.pt: weights without the text tower: to segment, give text_featu"):
            load(tiny_segvol(), tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (torch.nn.Linear(2, 1).state_dict(), ["model.pt"], "weights of another network"),
        (None, ["model.pth"], "model.pth: not a name for weights"),
        (None, ["SegVol_v1.pt"], "is the source itself"),
        ({"model.encoder.norm.weight": torch.ones(16)}, ["vit.pt"], "weights of another network: 26 of 27"),
        (None, ["model.pt", "--text_tower", "false"], "need text_features: give the file to write"),
        (None, ["model.pt", "--texts", "cyst"], "need text_features: give the file to write"),
        ({"model": torch.nn.Linear(2, 1)}, ["model.pt"], "holds pickled code (torch.nn.modules.linear.Linear)"),
        ({"model.encoder.norm.weight": torch.ones(16)}, ["v.pt", "--text_features", "t.pt"], "an image encoder alone"),
    ],
)
def test_bad_input_has_one_clear_error_and_writes_nothing(tmp_path, monkeypatch, caplog, content, arguments, message):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "SegVol_v1.pt", content or published(tiny_segvol().state_dict()))
    assert main(["SegVol_v1.pt", *arguments]) == 2
    assert message in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["SegVol_v1.pt"]
