import logging
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import filter_swinunetr

from scripts import networks, weight_files, weights

PATCH_EMBEDDING = "swinViT.patch_embed.proj.weight"
IMAGE_WEIGHTS = {PATCH_EMBEDDING, "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"}
HEAD = {"out.conv.conv.weight", "out.conv.conv.bias"}


def tiny(*, seed=0, in_channels=1, out_channels=3, feature_size=12, legacy=False):
    torch.manual_seed(seed)
    return SwinUNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        feature_size=feature_size,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
        window_size=4,
        downsample=networks.patch_merging(legacy),
    ).eval()


def state_of(**options):
    return tiny(**options).state_dict()


def exactly(message):
    return f"^{re.escape(message)}$"


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


class TouchesFile:
    """Unpickled without care, it makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class RunsCommand(TouchesFile):
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "network", "net"])
def test_wrapped_state_dicts_are_unwrapped(tmp_path, wrapper):
    state = state_of()
    path = saved(tmp_path / "w.pt", {wrapper: state, "epoch": 3, "optimizer": {"state": {}}})
    assert_equal_states(weight_files.load_state_dict_file(path), state)


@pytest.mark.parametrize("prefix", ["module.", "module.backbone.", "_orig_mod.", "_orig_mod.module.", "backbone."])
def test_prefixes_of_wrapped_networks_are_stripped(tmp_path, prefix):
    state = state_of()
    path = saved(tmp_path / "w.pt", {prefix + key: value for key, value in state.items()})
    assert_equal_states(weight_files.load_state_dict_file(path), state)


def test_swin_vit_of_old_monai_is_renamed(tmp_path):
    state = state_of()
    renamed = {key.replace("swinViT", "module.swin_vit"): value for key, value in state.items()}
    assert_equal_states(weight_files.load_state_dict_file(saved(tmp_path / "w.pt", renamed)), state)


def test_names_of_other_networks_are_kept(tmp_path):
    state = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "mlp": torch.nn.Linear(2, 2)}).state_dict()
    state["backbone.mlp.fc1.weight"] = torch.zeros(1)
    assert list(weight_files.load_state_dict_file(saved(tmp_path / "w.pt", state))) == list(state)


def test_numpy_numbers_beside_the_weights_are_read(tmp_path):
    state = state_of()
    numbers = {
        "best_acc": np.float64(0.8),
        "loss": np.float32(0.1),
        "epoch": np.int64(3),
        "done": np.bool_(True),
    }
    path = saved(tmp_path / "w.pt", {"state_dict": state} | numbers)
    assert_equal_states(weight_files.load_state_dict_file(path), state)


def test_numpy_numbers_saved_with_numpy_1_are_read(tmp_path):
    state, path = state_of(), tmp_path / "w.pt"
    newer = saved(tmp_path / "newer.pt", {"state_dict": state, "best_acc": np.float64(0.8)})
    with zipfile.ZipFile(newer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            target.writestr(name, content)
    assert_equal_states(weight_files.load_state_dict_file(path), state)


def test_globals_allowed_for_numpy_numbers_do_not_stay_allowed(tmp_path):
    path = saved(tmp_path / "w.pt", {"state_dict": state_of(), "best_acc": np.float64(0.8)})
    before = set(torch.serialization.get_safe_globals())
    assert np.dtype not in before
    weight_files.load_state_dict_file(path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_globals_that_were_allowed_before_stay_allowed(tmp_path):
    path = saved(tmp_path / "w.pt", state_of())
    with torch.serialization.safe_globals([np.dtype]):
        weight_files.load_state_dict_file(path)
        assert np.dtype in torch.serialization.get_safe_globals()


def test_self_supervised_encoder_loads_as_monai_loads_it(tmp_path):
    path = saved(tmp_path / "model_swinvit.pt", self_supervised(state_of(seed=1)))
    ours, theirs = tiny(), tiny()
    report = weights.load_pretrained(ours, path)
    theirs.load_from(torch.load(path, weights_only=True))
    assert_equal_states(ours.state_dict(), theirs.state_dict())
    assert all(key.startswith("swinViT.") for key in report.loaded)
    assert not any(key.startswith("swinViT.") for key in report.fresh)
    assert report.unused == ("rotation_head.weight", "contrastive_head.weight", "convTrans3d.weight")


def test_disruptive_autoencoder_names_are_those_of_monais_filter(tmp_path):
    state = state_of()
    names = [key.replace("swinViT.", "encoder.") for key in state if key.startswith("swinViT.")]
    deeper = [key.replace(".0.", ".0.0.", 1) if "layers" in key else key for key in names]
    path = saved(tmp_path / "w.pt", {"model": {key: torch.zeros(1) for key in deeper}})
    # MONAI's filter cuts fixed columns of the names, which spoils the two of the patch embedding
    expected = [filter_swinunetr(key, 0)[0] for key in deeper if "patch_embed" not in key]
    ours = [key for key in weight_files.load_state_dict_file(path) if "patch_embed" not in key]
    assert ours == expected
    assert set(weight_files.load_state_dict_file(path)) <= set(state)


def test_strict_loading_keeps_the_parameter_objects(tmp_path):
    network, path = tiny(), saved(tmp_path / "w.pt", state_of(seed=1))
    before = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    weights.load_weights(network, path)
    assert {name: parameter.data_ptr() for name, parameter in network.named_parameters()} == before
    assert_equal_states(network.state_dict(), state_of(seed=1))


def test_any_module_loads_strictly(tmp_path):
    network, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    weights.load_weights(network, saved(tmp_path / "w.pt", other.state_dict()))
    assert torch.equal(network.weight, other.weight)


def test_legacy_weights_load_into_a_legacy_network(tmp_path):
    network, path = tiny(legacy=True), saved(tmp_path / "w.pt", state_of(seed=1, legacy=True))
    weights.load_weights(network, path)
    assert_equal_states(network.state_dict(), state_of(seed=1, legacy=True))


STRICT = "give the network the settings that the file was trained with, or use the file as pretrained weights."
UNMARKED = (
    "not marked as trained with the patch merging of MONAI < 1.5: leave out --legacy_merging true; or, if it "
    "was, convert it first: python -m scripts.convert_weights w.pt models/model.pt"
)
MARKED = "trained with the patch merging of MONAI < 1.5: add --legacy_merging true."


@pytest.mark.parametrize(
    ("content", "legacy", "message"),
    [
        (
            lambda: state_of(out_channels=14),
            False,
            "weights of another network: 0 of 103 tensors missing, 0 unexpected, 2 of another shape (first: "
            f"out.conv.conv.weight: file (14, 12, 1, 1, 1), network (3, 12, 1, 1, 1)); {STRICT}",
        ),
        (
            lambda: self_supervised(state_of()),
            False,
            "weights of another network: 33 of 103 tensors missing, 3 unexpected, 0 of another shape (first: "
            f"encoder1.layer.conv1.conv.weight is missing); {STRICT}",
        ),
        (
            lambda: state_of() | {"extra": torch.zeros(1)},
            False,
            "weights of another network: 0 of 103 tensors missing, 1 unexpected, 0 of another shape (first: "
            f"extra is unexpected); {STRICT}",
        ),
        (lambda: state_of(legacy=True), False, MARKED),
        (state_of, True, UNMARKED),
    ],
    ids=["another head", "encoder only", "extra tensor", "legacy file", "legacy network"],
)
def test_weights_of_another_network_are_refused_in_a_sentence(tmp_path, monkeypatch, content, legacy, message):
    monkeypatch.chdir(tmp_path)
    saved("w.pt", content())
    network = tiny(seed=5, legacy=legacy)
    with pytest.raises(ValueError, match=exactly(f"w.pt: {message}")):
        weights.load_weights(network, "w.pt")
    assert_equal_states(network.state_dict(), state_of(seed=5, legacy=legacy))


DAMAGED = "is no file of torch.save, or is damaged: fetch or save it again."
NO_WEIGHTS = "holds no weights: give a file of torch.save(network.state_dict(), path)."
REFUSED = (
    "holds pickled code (torch.nn.modules.linear.Linear), refused because it could run anything: if you "
    "trust its source, save its state dict alone and give that file."
)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), DAMAGED),
        (lambda path: path.write_text("<html>404: not found</html>\n" * 40), DAMAGED),
        (lambda path: path.write_bytes(saved(path, state_of()).read_bytes()[:5000]), DAMAGED),
        (lambda path: saved(path, [torch.zeros(2)]), NO_WEIGHTS),
        (lambda path: saved(path, torch.zeros(2)), NO_WEIGHTS),
        (lambda path: saved(path, {"epoch": 3, "best_acc": 0.5}), NO_WEIGHTS),
        (lambda path: saved(path, {"state_dict": {}}), NO_WEIGHTS),
        (lambda path: saved(path, torch.nn.Linear(2, 2)), REFUSED),
        (
            lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path),
            "is a TorchScript archive: give the file of weights, model.pt.",
        ),
    ],
    ids=[
        "empty",
        "web page",
        "cut off",
        "list",
        "tensor",
        "no tensors",
        "empty dict",
        "module",
        "TorchScript",
    ],
)
def test_files_without_weights_are_refused_in_a_sentence(tmp_path, write, message):
    path = tmp_path / "w.pt"
    write(path)
    with pytest.raises(ValueError, match=exactly(f"{path}: {message}")):
        weight_files.load_state_dict_file(path)


@pytest.mark.parametrize("name", ["absent.pt", "."])
def test_missing_file_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=exactly(f"{path}: no such file: give the path of the weights.")):
        weight_files.load_state_dict_file(path)


@pytest.mark.parametrize("kind", [TouchesFile, RunsCommand])
def test_pickled_code_is_refused_and_not_run(tmp_path, kind):
    touched = tmp_path / "touched"
    path = saved(tmp_path / "w.pt", {"state_dict": state_of(), "best_acc": kind(touched)})
    with pytest.raises(ValueError, match=r"w\.pt: holds pickled code \([\w.]+\), refused because"):
        weight_files.load_state_dict_file(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists(), "the file is harmless, so the test proves nothing"


@pytest.mark.parametrize(("given", "wanted"), [(1, 4), (4, 1)])
def test_other_input_channels_give_the_same_answer_to_replicated_images(tmp_path, given, wanted):
    pretrained, network = tiny(seed=1, in_channels=given), tiny(in_channels=wanted)
    report = weights.load_pretrained(network, saved(tmp_path / "w.pt", pretrained.state_dict()))
    assert set(report.adapted) == IMAGE_WEIGHTS
    assert report.fresh == report.unused == ()
    image = torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = pretrained(image.expand(-1, given, -1, -1, -1))
        after = network(image.expand(-1, wanted, -1, -1, -1))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_head_of_another_size_is_left_as_initialised(tmp_path):
    network, path = tiny(out_channels=5), saved(tmp_path / "w.pt", state_of(seed=1, out_channels=14))
    head = network.out.conv.conv.weight.clone()
    report = weights.load_pretrained(network, path)
    assert set(report.fresh) == set(report.unused) == HEAD
    assert len(report.loaded) == 101
    assert torch.equal(network.out.conv.conv.weight, head)
    assert torch.equal(network.swinViT.patch_embed.proj.weight, torch.load(path)[PATCH_EMBEDDING])


def test_partial_loading_keeps_the_parameter_objects(tmp_path):
    network, path = tiny(in_channels=2), saved(tmp_path / "w.pt", state_of(seed=1))
    before = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    weights.load_pretrained(network, path)
    assert {name: parameter.data_ptr() for name, parameter in network.named_parameters()} == before


PARTIAL = "give the network the settings that the file was trained with."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: torch.nn.Linear(2, 2).state_dict(),
            f"pretrained weights of another network: 0 of 103 tensors fit, 0 are of another shape; {PARTIAL}",
        ),
        (
            lambda: state_of(feature_size=24),
            "pretrained weights of another network: 9 of 103 tensors fit, 93 are of another shape (first: "
            f"swinViT.patch_embed.proj.weight: file (24, 1, 2, 2, 2), network (12, 1, 2, 2, 2)); {PARTIAL}",
        ),
        (lambda: state_of(legacy=True), MARKED),
    ],
    ids=["nothing fits", "another feature size", "legacy file"],
)
def test_pretrained_weights_of_another_network_are_refused(tmp_path, content, message):
    path, network = saved(tmp_path / "w.pt", content()), tiny(seed=5)
    with pytest.raises(ValueError, match=exactly(f"{path}: {message}")):
        weights.load_pretrained(network, path)
    assert_equal_states(network.state_dict(), state_of(seed=5))


@pytest.mark.parametrize("file_is_marked", [True, False])
def test_legacy_network_takes_pretrained_weights_with_or_without_the_mark(tmp_path, file_is_marked):
    network, path = tiny(legacy=True), saved(tmp_path / "w.pt", state_of(seed=1, legacy=file_is_marked))
    report = weights.load_pretrained(network, path)
    assert_equal_states(network.state_dict(), state_of(seed=1, legacy=True))
    assert len(report.loaded) == 103
    assert report.fresh == report.unused == ()


ADAPTED = "swinViT.patch_embed.proj.weight, encoder1.layer.conv1.conv.weight, encoder1.layer.conv3.conv.weight"
NEW = "encoder1.layer.conv1.conv.weight, encoder1.layer.conv2.conv.weight, encoder1.layer.conv3.conv.weight"
HEADS = "rotation_head.weight, contrastive_head.weight, convTrans3d.weight"
OLDER, NEWER = "MONAI < 1.5", "MONAI >= 1.5 (if older: --legacy_merging true)"


@pytest.mark.parametrize(
    ("content", "legacy", "line"),
    [
        (
            lambda: state_of(in_channels=4),
            False,
            f"loaded 100 of 103 tensors, adapted [{ADAPTED}], new [], unused in file []; taken as trained with {NEWER}",
        ),
        (
            lambda: self_supervised(state_of()),
            True,
            f"loaded 70 of 103 tensors, adapted [], new [{NEW} and 30 more], unused in file [{HEADS}]; "
            f"taken as trained with {OLDER}",
        ),
        (
            lambda: state_of(out_channels=14, legacy=True),
            True,
            "loaded 101 of 103 tensors, adapted [], new [out.conv.conv.weight, out.conv.conv.bias], "
            "unused in file [out.conv.conv.weight, out.conv.conv.bias]",
        ),
    ],
    ids=["other channels", "encoder only", "other head, marked"],
)
def test_one_line_says_what_was_loaded_and_what_not(tmp_path, caplog, content, legacy, line):
    path = saved(tmp_path / "w.pt", content())
    with caplog.at_level(logging.INFO, logger=weights.__name__):
        weights.load_pretrained(tiny(legacy=legacy), path)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", f"{path}: {line}")]


def test_less_than_half_of_the_network_loaded_is_a_warning(tmp_path, caplog):
    path = saved(tmp_path / "w.pt", {PATCH_EMBEDDING: torch.zeros(12, 1, 2, 2, 2)})
    weights.load_pretrained(tiny(), path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.fixture
def distributed(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("handler", [weights.StrictCheckpointLoader, weights.PretrainedLoader])
def test_handlers_load_into_a_distributed_network_at_the_start(tmp_path, distributed, handler):
    network = tiny()
    path = saved(tmp_path / "w.pt", state_of(seed=1))
    engine = Engine(lambda engine, batch: None)
    handler(torch.nn.parallel.DistributedDataParallel(network), path).attach(engine)
    assert not torch.equal(network.state_dict()[PATCH_EMBEDDING], state_of(seed=1)[PATCH_EMBEDDING])
    engine.run([0])
    assert_equal_states(network.state_dict(), state_of(seed=1))


def test_resumed_training_keeps_its_weights(tmp_path):
    network, path = tiny(), saved(tmp_path / "w.pt", state_of(seed=1))
    engine = Engine(lambda engine, batch: None)
    engine.load_state_dict({"epoch": 1, "max_epochs": 2, "epoch_length": 1})
    weights.PretrainedLoader(network, path).attach(engine)
    engine.run([0])
    assert_equal_states(network.state_dict(), state_of())
