import json
import logging
import re

import pytest
import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.models.pretrained import PretrainedLoader, load_pretrained, read_file_classes
from tests.scripts.models.tiny_networks import (
    PATCH_EMBEDDING,
    assert_equal_states,
    plain_state,
    saved,
    self_supervised,
    state_of,
    tiny,
)

IMAGE_WEIGHTS = {PATCH_EMBEDDING, "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"}
HEAD = {"out.conv.conv.weight", "out.conv.conv.bias"}


def test_self_supervised_encoder_loads_as_monai_loads_it(tmp_path):
    path = saved(tmp_path / "model_swinvit.pt", self_supervised(state_of(seed=1)))
    ours, theirs = tiny(), tiny()
    report = load_pretrained(ours, path)
    theirs.load_from(torch.load(path, weights_only=True))
    assert_equal_states(ours.state_dict(), theirs.state_dict())
    assert all(key.startswith("swinViT.") for key in report.loaded)
    assert not any(key.startswith("swinViT.") for key in report.fresh)
    assert report.unused == ("rotation_head.weight", "contrastive_head.weight", "convTrans3d.weight")


@pytest.mark.parametrize(("given", "wanted"), [(1, 4), (4, 1)])
def test_other_input_channels_give_the_same_output_for_replicated_images(tmp_path, given, wanted):
    pretrained, network = tiny(seed=1, in_channels=given), tiny(in_channels=wanted)
    report = load_pretrained(network, saved(tmp_path / "w.pt", plain_state(pretrained)))
    assert set(report.adapted) == IMAGE_WEIGHTS
    assert report.fresh == report.unused == ()
    image = torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = pretrained(image.expand(-1, given, -1, -1, -1))
        after = network(image.expand(-1, wanted, -1, -1, -1))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_head_of_another_size_is_left_as_initialized(tmp_path):
    network, path = tiny(out_channels=5), saved(tmp_path / "w.pt", state_of(seed=1, out_channels=14))
    head = network.out.conv.conv.weight.clone()
    report = load_pretrained(network, path)
    assert set(report.fresh) == set(report.unused) == HEAD
    assert len(report.loaded) == 101
    assert torch.equal(network.out.conv.conv.weight, head)
    assert torch.equal(network.swinViT.patch_embed.proj.weight, torch.load(path)[PATCH_EMBEDDING])


def test_partial_loading_keeps_the_parameter_objects(tmp_path):
    network, path = tiny(in_channels=2), saved(tmp_path / "w.pt", state_of(seed=1))
    before = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    load_pretrained(network, path)
    assert {name: parameter.data_ptr() for name, parameter in network.named_parameters()} == before


SETTINGS = "give the network the settings that the file was trained with."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            lambda: torch.nn.Linear(2, 2).state_dict(),
            f"pretrained weights of another network: 0 of 103 tensors fit, 0 are of another shape; {SETTINGS}",
            id="nothing fits",
        ),
        pytest.param(
            lambda: state_of(feature_size=24),
            "pretrained weights of another network: 9 of 103 tensors fit, 93 are of another shape (first: "
            f"swinViT.patch_embed.proj.weight: file (24, 1, 2, 2, 2), network (12, 1, 2, 2, 2)); {SETTINGS}",
            id="another feature size",
        ),
        pytest.param(
            lambda: state_of(legacy=True),
            "trained with the patch merging of MONAI < 1.5; set legacy_merging to true.",
            id="legacy file",
        ),
    ],
)
def test_pretrained_weights_of_another_network_are_refused_before_any_is_loaded(tmp_path, content, message):
    path, network = saved(tmp_path / "w.pt", content()), tiny(seed=5)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_pretrained(network, path)
    assert_equal_states(plain_state(network), state_of(seed=5))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (PATCH_EMBEDDING, lambda t: t * torch.nan, "holds 96 values that are not finite"),
        (PATCH_EMBEDDING, lambda t: t.to(torch.int32), "is of torch.int32, the network's of torch.float32"),
        (PATCH_EMBEDDING, lambda t: t.expand(-1, 3, -1, -1, -1).int(), "is of torch.int32, the network's of torch"),
        (PATCH_EMBEDDING, lambda t: t.repeat(1, 3, 1, 1, 1) * torch.inf, "holds 96 values that are not finite"),
    ],
    ids=["NaN", "integers", "integers to adapt", "infinite to adapt"],
)
def test_pretrained_weights_without_usable_values_are_refused_before_any_is_loaded(tmp_path, key, change, message):
    state = state_of(seed=1)
    path, network = saved(tmp_path / "w.pt", state | {key: change(state[key]).contiguous()}), tiny(seed=5)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {key} {message}')}"):
        load_pretrained(network, path)
    assert_equal_states(plain_state(network), state_of(seed=5))


def test_values_of_tensors_that_are_not_loaded_do_not_matter(tmp_path):
    state = state_of(seed=1, out_channels=14) | {"extra": torch.tensor([torch.nan])}
    state["out.conv.conv.bias"] *= torch.nan
    report = load_pretrained(tiny(), saved(tmp_path / "w.pt", state))
    assert set(report.unused) == HEAD | {"extra"}


@pytest.mark.parametrize("file_is_marked", [True, False])
def test_legacy_network_takes_pretrained_weights_with_and_without_the_marker(tmp_path, file_is_marked):
    network, path = tiny(legacy=True), saved(tmp_path / "w.pt", state_of(seed=1, legacy=file_is_marked))
    report = load_pretrained(network, path)
    assert_equal_states(plain_state(network), state_of(seed=1, legacy=True))
    assert len(report.loaded) == 103
    assert report.fresh == report.unused == ()


ADAPTED = "swinViT.patch_embed.proj.weight, encoder1.layer.conv1.conv.weight, encoder1.layer.conv3.conv.weight"
NEW = "encoder1.layer.conv1.conv.weight, encoder1.layer.conv2.conv.weight, encoder1.layer.conv3.conv.weight"
HEADS = "rotation_head.weight, contrastive_head.weight, convTrans3d.weight"


@pytest.mark.parametrize(
    ("content", "legacy", "line"),
    [
        pytest.param(
            lambda: state_of(in_channels=4),
            False,
            f"loaded 100 of 103 tensors, adapted [{ADAPTED}], new [], unused in file []; "
            "assumed to be trained with MONAI >= 1.5 (if not, set legacy_merging to true)",
            id="other channels",
        ),
        pytest.param(
            lambda: self_supervised(state_of()),
            True,
            f"loaded 70 of 103 tensors, adapted [], new [{NEW} and 30 more], unused in file [{HEADS}]; "
            "assumed to be trained with MONAI < 1.5",
            id="encoder only",
        ),
        pytest.param(
            lambda: state_of(out_channels=14, legacy=True),
            True,
            "loaded 101 of 103 tensors, adapted [], new [out.conv.conv.weight, out.conv.conv.bias], "
            "unused in file [out.conv.conv.weight, out.conv.conv.bias]",
            id="other head, marked",
        ),
    ],
)
def test_log_names_what_was_loaded_and_what_was_not(tmp_path, caplog, content, legacy, line):
    path = saved(tmp_path / "w.pt", content())
    with caplog.at_level(logging.INFO, logger="scripts.models.pretrained"):
        load_pretrained(tiny(legacy=legacy), path)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", f"{path}: {line}")]


def test_less_than_half_of_the_network_loaded_is_a_warning(tmp_path, caplog):
    path = saved(tmp_path / "w.pt", {PATCH_EMBEDDING: torch.zeros(12, 1, 2, 2, 2)})
    load_pretrained(tiny(), path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_resumed_training_keeps_its_weights(tmp_path):
    network, path = tiny(), saved(tmp_path / "w.pt", state_of(seed=1))
    engine = Engine(lambda engine, batch: None)
    engine.load_state_dict({"epoch": 1, "max_epochs": 2, "epoch_length": 1})
    PretrainedLoader(network, path).attach(engine)
    engine.run([0])
    assert_equal_states(plain_state(network), state_of())


# Classes by name

ORGANS_OF_FILE = ["background", "liver", "kidney_right", "muscle", "portal_vein_and_splenic_vein"]
ORGANS_OF_NETWORK = ["background", "right kidney", "esophagus", "portal and splenic veins", "liver", "left kidney"]
SHARED = {0: 0, 1: 2, 3: 4, 4: 1}


def test_classes_that_both_know_keep_their_logits(tmp_path, caplog):
    """For the same features, whatever their numbers; the others are as initialized."""
    pretrained, network = tiny(seed=1, out_channels=5), tiny(out_channels=6)
    fresh = tiny(out_channels=6)
    path = saved(tmp_path / "w.pt", pretrained.state_dict())
    with caplog.at_level(logging.INFO, logger="scripts.models.pretrained"):
        report = load_pretrained(network, path, class_names=ORGANS_OF_NETWORK, file_classes=ORGANS_OF_FILE)
    assert report.classes == ("background", "right kidney", "portal and splenic veins", "liver")
    assert set(report.adapted) == HEAD
    assert report.fresh == report.unused == ()
    assert "heads of 4 of 6 classes: background, right kidney, portal and splenic veins, liver" in caplog.text
    image = torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = pretrained(image), network(image)
    for own, other in SHARED.items():
        torch.testing.assert_close(after[:, own], before[:, other], rtol=1e-5, atol=1e-5)
    for own in {*range(6)} - SHARED.keys():
        assert torch.equal(network.out.conv.conv.weight[own], fresh.out.conv.conv.weight[own])


def test_classes_in_another_order_are_put_in_order(tmp_path):
    network, state = tiny(), state_of(seed=1)
    names = ["background", "liver", "spleen"]
    path = saved(tmp_path / "w.pt", state)
    load_pretrained(network, path, class_names=names, file_classes=[names[0], names[2], names[1]])
    assert torch.equal(network.out.conv.conv.bias, state["out.conv.conv.bias"][[0, 2, 1]])


@pytest.mark.parametrize("file_classes", [[], ["background", "liver"], ["a", "b", "c", "d"]])
def test_head_without_names_or_with_too_many_is_loaded_by_its_size(tmp_path, file_classes):
    network, state = tiny(), state_of(seed=1)
    path = saved(tmp_path / "w.pt", state)
    report = load_pretrained(network, path, class_names=["x", "y", "z"], file_classes=file_classes)
    assert report.classes == ()
    assert torch.equal(network.out.conv.conv.bias, state["out.conv.conv.bias"])


def test_head_of_other_classes_is_left_as_initialized(tmp_path):
    network, head = tiny(), tiny().out.conv.conv.bias
    path = saved(tmp_path / "w.pt", state_of(seed=1))
    report = load_pretrained(network, path, class_names=["x", "y", "z"], file_classes=["a", "b", "c"])
    assert torch.equal(network.out.conv.conv.bias, head)
    assert set(report.fresh) == set(report.unused) == HEAD


def test_names_of_a_file_are_those_of_the_bundle_that_it_lies_in(tmp_path):
    model = tmp_path / "bundle" / "models" / "model.pt"
    model.parent.mkdir(parents=True)
    assert read_file_classes(model) == []
    names = {"0": "background", "1": "liver"}
    metadata = {"monai_version": "1", "network_data_format": {"outputs": {"pred": {"channel_def": names}}}}
    (tmp_path / "bundle" / "configs").mkdir()
    (tmp_path / "bundle" / "configs" / "metadata.json").write_text(json.dumps(metadata))
    assert read_file_classes(model) == ["background", "liver"]
    assert read_file_classes(tmp_path / "bundle" / "runs" / "model.pt") == []
    (tmp_path / "mine.json").write_text(json.dumps({"0": "background", "1": "spleen"}))
    assert read_file_classes(model, tmp_path / "mine.json") == ["background", "spleen"]


@pytest.mark.parametrize("text", ["", "[]", "3", '{"1": "liver"}', '{"0": 5}', "{", '{"monai_version": "1"}'])
def test_file_without_names_of_classes_is_refused(tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(InputError, match=r"mine.json: holds no names of classes \(.*give metadata.json of a bundle"):
        read_file_classes(tmp_path / "w.pt", tmp_path / "mine.json")
