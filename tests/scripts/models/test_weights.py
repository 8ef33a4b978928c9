import logging
import re

import pytest
import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.models.pretrained import PretrainedLoader
from scripts.models.weights import StrictCheckpointLoader, load_weights
from tests.scripts.models.tiny_networks import (
    PATCH_EMBEDDING,
    assert_equal_states,
    plain_state,
    saved,
    self_supervised,
    state_of,
    tiny,
)


def test_strict_loading_keeps_the_parameter_objects(tmp_path):
    network, path = tiny(), saved(tmp_path / "w.pt", state_of(seed=1))
    before = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    load_weights(network, path)
    assert {name: parameter.data_ptr() for name, parameter in network.named_parameters()} == before
    assert_equal_states(plain_state(network), state_of(seed=1))


def test_any_module_loads_strictly(tmp_path):
    network, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    load_weights(network, saved(tmp_path / "w.pt", other.state_dict()))
    assert torch.equal(network.weight, other.weight)


def test_legacy_weights_load_into_a_legacy_network(tmp_path):
    network, path = tiny(legacy=True), saved(tmp_path / "w.pt", state_of(seed=1, legacy=True))
    load_weights(network, path)
    assert_equal_states(plain_state(network), state_of(seed=1, legacy=True))


STRICT = "give the network the settings that the file was trained with, or use the file as pretrained weights."


@pytest.mark.parametrize(
    ("content", "legacy", "message"),
    [
        pytest.param(
            lambda: state_of(out_channels=14),
            False,
            "weights of another network: 0 of 103 tensors missing, 0 unexpected, 2 of another shape (first: "
            f"out.conv.conv.weight: file (14, 12, 1, 1, 1), network (3, 12, 1, 1, 1)); {STRICT}",
            id="another head",
        ),
        pytest.param(
            lambda: self_supervised(state_of()),
            False,
            "weights of another network: 33 of 103 tensors missing, 3 unexpected, 0 of another shape (first: "
            f"encoder1.layer.conv1.conv.weight is missing); {STRICT}",
            id="encoder only",
        ),
        pytest.param(
            lambda: state_of() | {"extra": torch.zeros(1)},
            False,
            "weights of another network: 0 of 103 tensors missing, 1 unexpected, 0 of another shape (first: "
            f"extra is unexpected); {STRICT}",
            id="extra tensor",
        ),
        pytest.param(
            lambda: state_of(legacy=True),
            False,
            "trained with the patch merging of MONAI < 1.5; set legacy_merging to true.",
            id="legacy file",
        ),
        pytest.param(
            state_of,
            True,
            "not marked as trained with the patch merging of MONAI < 1.5; set legacy_merging to false or, if it was, "
            "convert the file first: python -m scripts.convert_weights SOURCE models/model.pt",
            id="legacy network",
        ),
    ],
)
def test_weights_of_another_network_are_refused_before_any_is_loaded(tmp_path, content, legacy, message):
    path, network = saved(tmp_path / "w.pt", content()), tiny(seed=5, legacy=legacy)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_weights(network, path)
    assert_equal_states(plain_state(network), state_of(seed=5, legacy=legacy))


class Thresholds(torch.nn.Module):
    """Infinite buffers, which the module judges itself, and a layer whose values it does not judge."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.BatchNorm1d(2)
        self.register_buffer("low", torch.tensor([-torch.inf, 0.0]))

    def refuse_state(self, state, path):
        if state["low"].isnan().any():
            raise InputError(f"{path}: low is NaN")


def test_only_buffers_that_a_module_judges_may_be_infinite(tmp_path):
    network = Thresholds()
    load_weights(network, saved(tmp_path / "w.pt", network.state_dict()))
    for key in ("layer.weight", "layer.running_mean"):
        path = saved(tmp_path / "w.pt", network.state_dict() | {key: torch.tensor([torch.inf, 0.0])})
        with pytest.raises(InputError, match=rf"{key} holds 1 values that are not finite: give other weights"):
            load_weights(network, path)
    with pytest.raises(InputError, match=r"w\.pt: low is NaN"):
        load_weights(network, saved(tmp_path / "w.pt", network.state_dict() | {"low": torch.tensor([torch.nan, 0])}))


def test_number_of_bad_tensors_is_named(tmp_path):
    state = {key: tensor * torch.nan for key, tensor in torch.nn.Linear(2, 1).state_dict().items()}
    with pytest.raises(InputError, match=r"weight holds 2 values that are not finite \(and 1 more tensors\): give"):
        load_weights(torch.nn.Linear(2, 1), saved(tmp_path / "w.pt", state))


@pytest.fixture
def distributed(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("handler", [StrictCheckpointLoader, PretrainedLoader])
def test_handlers_load_into_a_distributed_network_at_the_start(tmp_path, distributed, handler):
    network = tiny()
    path = saved(tmp_path / "w.pt", state_of(seed=1))
    engine = Engine(lambda engine, batch: None)
    handler(torch.nn.parallel.DistributedDataParallel(network), path).attach(engine)
    assert not torch.equal(network.state_dict()[PATCH_EMBEDDING], state_of(seed=1)[PATCH_EMBEDDING])
    engine.run([0])
    assert_equal_states(plain_state(network), state_of(seed=1))


def test_strict_loader_logs_the_file(tmp_path, caplog):
    network = torch.nn.Linear(2, 2)
    path = saved(tmp_path / "w.pt", network.state_dict())
    with caplog.at_level(logging.INFO, logger="scripts.models.weights"):
        StrictCheckpointLoader(network, path)(Engine(lambda engine, batch: None))
    assert caplog.messages == [f"loaded {path}"]
