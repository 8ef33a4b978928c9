import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from scripts.common.errors import InputError
from scripts.etta.inferer import ETTAInferer
from scripts.etta.settings import ETTASettings
from tests.scripts.etta.tiny_network import (
    INFERER,
    INPUT,
    LENIENT,
    Prototypes,
    Tiny,
    assert_restored,
    blocks,
    image,
    plain,
    predict,
    state,
)


def test_no_steps_give_the_plain_result_and_measure_nothing():
    network, x = Tiny().eval(), image(batch=2)
    expected = plain(network, x)
    calls = network.calls
    pred, outcomes = predict(network, x, ETTASettings(adapt="weights", steps=0))
    assert torch.equal(pred, expected)
    assert network.calls == 2 * calls
    assert [outcome.reason for outcome in outcomes] == ["steps is 0"] * 2


def test_batch_is_adapted_image_by_image():
    network, x = Tiny().eval(), image(batch=2)
    both, outcomes = predict(network, x)
    assert len(outcomes) == 2
    for index in range(2):
        assert torch.equal(both[index : index + 1], predict(network, x[index : index + 1])[0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_in_each_gradient_mode_of_the_caller(context):
    network, x = Tiny().eval(), image()
    expected, _ = predict(network, x)
    with context():
        pred = ETTAInferer(INFERER, LENIENT)(image(), network)
    assert torch.equal(pred.detach().clone(), expected)
    assert not torch.is_inference(network.body[1].norm.weight)


@pytest.mark.parametrize(
    ("inferer", "network", "options", "message"),
    [
        (INFERER, lambda x: x, {}, "network is a function: pass a torch.nn.Module, or adapt the input."),
        (INFERER, Tiny().eval(), {"condition": image()}, "the network takes more than an image"),
        (SlidingWindowInferer(8, with_coord=True), Tiny().eval(), {}, "the inferer has with_coord=True"),
    ],
)
def test_networks_and_inferers_that_cannot_adapt_are_refused(inferer, network, options, message):
    with pytest.raises(InputError, match=message):
        ETTAInferer(inferer, LENIENT)(image(), network, **options)


def test_both_adapts_the_weights_to_the_changed_image():
    """Each is judged by itself, and the outcome tells of both."""
    network, x = nn.Sequential(Prototypes(), nn.BatchNorm3d(4)).eval(), blocks() ** 1.6
    before = state(network)
    pred, (outcome,) = predict(network, x, ETTASettings(**{**vars(LENIENT), "adapt": "both"}))
    alone, (of_input,) = predict(network, x, INPUT)
    assert not torch.equal(pred, alone)
    assert (outcome.accepted, outcome.candidate) == (True, of_input.candidate)
    assert outcome.reason == "input: entropy dropped; weights: entropy dropped"
    assert outcome.entropy_after < of_input.entropy_after < outcome.entropy_before
    assert_restored(network, before)
