import itertools
import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from torch import nn

from scripts.common.errors import InputError
from scripts.etta.core import NOT_FINITE, adapted, affine_parameters
from scripts.etta.objectives import mean_entropy
from scripts.etta.outcome import ACCEPTED
from scripts.etta.settings import ETTASettings
from scripts.inference.window_layout import WindowLayout
from tests.scripts.etta.tiny_network import (
    INFERER,
    LENIENT,
    NORMS,
    Tiny,
    assert_restored,
    image,
    plain,
    predict,
    state,
)


class Periodic(Tiny):
    """Its entropy rises again after a step that is too long."""

    def forward(self, x):
        return 3 * torch.sin(super().forward(x))


@pytest.mark.parametrize("norm", NORMS)
def test_each_kind_of_normalization_adapts_and_is_restored(norm):
    network, x = Tiny(norm).eval(), image()
    expected, before = plain(network, x), state(network)
    pred, (outcome,) = predict(network, x)
    assert (outcome.accepted, outcome.reason) == (True, ACCEPTED)
    assert outcome.entropy_after < outcome.entropy_before
    assert not torch.equal(pred, expected)
    assert_restored(network, before)
    assert torch.equal(plain(network, x), expected)


@pytest.mark.parametrize("fail_at", [2, 10, 14, 20])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_network_is_restored_when_a_case_fails_half_way(norm, fail_at):
    network = Tiny(norm, fail_at=fail_at).eval()
    network.body[0].weight.grad = torch.ones_like(network.body[0].weight)
    network.body[0].bias.requires_grad_(False)
    before = state(network)
    settings = ETTASettings(**{**vars(LENIENT), "batch_statistics": "case"})
    with pytest.raises(RuntimeError, match="out of order"):
        predict(network, image(), settings)
    assert_restored(network, before)


def test_network_is_restored_when_the_block_raises():
    network, x = Tiny().eval(), image()
    before = state(network)
    with (
        pytest.raises(KeyboardInterrupt),
        adapted(network, x, WindowLayout.of(INFERER, x.shape[2:]), LENIENT) as outcome,
    ):
        assert outcome.accepted
        assert not torch.equal(network.body[1].norm.weight, before[0][2][2])
        raise KeyboardInterrupt
    assert_restored(network, before)


def test_results_do_not_depend_on_the_order_of_cases():
    network, cases = Tiny().eval(), [image(seed, size=8) for seed in range(3)]
    alone = [predict(Tiny().eval(), x)[0] for x in cases]
    for order in itertools.permutations(range(3)):
        for index in order:
            assert torch.equal(predict(network, cases[index])[0], alone[index])


def test_same_seed_draws_the_same_windows_and_another_seed_others():
    network, x = Tiny().eval(), image(size=16)
    results = [
        predict(network, x, ETTASettings(adapt="weights", windows_per_step=1, seed=s, guard=False))[0]
        for s in (0, 0, 1)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_global_randomness_is_neither_used_nor_changed():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    network = Tiny().eval()
    torch.manual_seed(5)
    predict(network, image())
    assert torch.equal(torch.rand(1), expected[0])
    assert np.random.rand() == expected[1]


def test_works_under_autocast():
    network, x = Tiny().eval(), image()
    before = state(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pred, (outcome,) = predict(network, x)
        again = plain(network, x)
    assert outcome.entropy_after < outcome.entropy_before
    assert not torch.equal(pred, again)
    assert_restored(network, before)


def test_meta_tensor_and_image_smaller_than_a_window():
    network = Tiny().eval()
    x = MetaTensor(image(size=6), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    pred, (outcome,) = predict(network, x)
    assert pred.shape == (1, 3, 6, 6, 6)
    assert torch.equal(pred.affine, x.affine)
    assert outcome.windows == 1


def test_case_statistics_replace_those_of_training():
    network, x = Tiny("batch").eval(), 5 + 3 * image()
    settings = ETTASettings(adapt="weights", steps=1, lr=0, batch_statistics="case", guard=False)
    before = state(network)
    pred, _ = predict(network, x, settings, SimpleInferer())
    assert_restored(network, before)
    with torch.no_grad():
        hidden = network.body[0](x)
        mean, var = hidden.mean((0, 2, 3, 4)), hidden.var((0, 2, 3, 4))
        normed = (hidden - mean[:, None, None, None]) / (var[:, None, None, None] + 1e-5).sqrt()
        expected = network.body[3](network.body[2](normed))
    torch.testing.assert_close(pred, expected, rtol=1e-4, atol=1e-4)


def test_infinite_gradients_are_refused_even_without_a_guard():
    network, x = Tiny().eval(), image(size=8)
    x[0, 0, 0, 0, 0] = float("inf")
    _, (outcome,) = predict(network, x, ETTASettings(adapt="weights", guard=False))
    assert (outcome.accepted, outcome.reason) == (False, NOT_FINITE)
    assert NOT_FINITE == "gradient not finite"


def test_best_step_is_kept_unless_the_last_is_asked_for():
    x, entropies = image(size=6), {}
    for steps in (1, 2, 3, 4):
        for keep in ("best", "last"):
            settings = ETTASettings(adapt="weights", steps=steps, keep=keep, lr=2.0, guard=False)
            _, (outcome,) = predict(Periodic().eval(), x, settings)
            entropies[keep, steps] = outcome.foreground_entropy_after
    last = [entropies["last", steps] for steps in (1, 2, 3, 4)]
    assert [entropies["best", steps] for steps in (1, 2, 3, 4)] == list(np.minimum.accumulate(last))
    assert last[1] > last[0] + 0.01, "no step overshoots: this shows nothing"
    assert last[3] > last[2] + 0.01


def test_overlapping_channels_adapt_too():
    settings = ETTASettings(**{**vars(LENIENT), "activation": "sigmoid"})
    network = Tiny().eval()
    before = state(network)
    _, (outcome,) = predict(network, image(), settings)
    assert outcome.entropy_after < outcome.entropy_before
    assert_restored(network, before)


def test_objective_of_the_settings_is_what_is_minimized():
    settings = ETTASettings(
        adapt="weights",
        objective=lambda logits, *, activation: -mean_entropy(logits, activation=activation),
        guard=False,
    )
    _, (outcome,) = predict(Tiny().eval(), image(), settings)
    assert outcome.entropy_after > outcome.entropy_before


def test_affine_parameters_are_those_of_swin_unetr():
    from monai.networks.nets import SwinUNETR

    parameters = affine_parameters(SwinUNETR(in_channels=1, out_channels=14, feature_size=48))
    assert (len(parameters), sum(p.numel() for p in parameters)) == (40, 17280)


def test_network_without_affine_normalization_is_refused():
    network = nn.Sequential(nn.Conv3d(1, 6, 1), nn.InstanceNorm3d(6), nn.Conv3d(6, 3, 1)).eval()
    message = (
        "Sequential has 1 normalization layers and none with weights to adapt: set adapt to 'input', or "
        "build the network with affine=True."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        predict(network, image())
