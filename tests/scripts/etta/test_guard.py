import re

import numpy as np
import pytest
import torch
from torch import nn

from scripts.common.errors import InputError
from scripts.etta.guard import PredictionStats, input_verdict, logits_of, measure, verdict
from scripts.etta.settings import ETTASettings
from tests.scripts.etta.tiny_network import Tiny, image, plain, predict


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lr": 5.0, "min_entropy_drop": 0.0}, r"volume of class \d changed by a factor of \d+\.\d\d"),
        ({"lr": 1e-4}, r"foreground entropy dropped by 0\.\d%, need 3\.0%"),
        ({"lr": 0.0}, "entropy did not drop"),
        (
            {"lr": 0.05, "min_entropy_drop": 0.0, "volume_band": (1, 1), "min_voxels": 0},
            r"volume of class \d changed by a factor of \d+\.\d\d",
        ),
    ],
)
def test_guard_refuses_and_the_plain_result_is_given_bit_for_bit(settings, reason):
    network, x = Tiny().eval(), image()
    pred, (outcome,) = predict(network, x, ETTASettings(**{"adapt": "weights", "steps": 3, **settings}))
    assert not outcome.accepted
    assert re.fullmatch(reason, outcome.reason), outcome.reason
    assert torch.equal(pred, plain(network, x))


def stats(entropy, counts, foreground_entropy=None):
    """Statistics of one window."""
    weighted = (entropy if foreground_entropy is None else foreground_entropy) * 7, 7.0
    return PredictionStats([entropy], [weighted], [0.5], [torch.tensor(counts)])


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (stats(0.1, [1000, 500]), ""),
        (stats(0.2, [1000, 500]), "entropy did not drop"),
        (stats(float("nan"), [1000, 500]), "entropy did not drop"),
        (stats(0.1, [1200, 300]), "volume of class 1 changed by a factor of 0.67"),
        (stats(0.1, [700, 800]), "volume of class 1 changed by a factor of 1.50"),
        (stats(0.1, [1000, 600]), ""),
        (stats(0.1, [1000, 500], 0.25), "foreground entropy dropped by -25.0%, need 3.0%"),
        (stats(0.1, [1000, 500], 0.195), "foreground entropy dropped by 2.5%, need 3.0%"),
        (stats(0.1, [1000, 500], 0.193), ""),
        (stats(0.1, [1000, 500], float("nan")), "foreground entropy dropped by nan%, need 3.0%"),
    ],
)
def test_verdict(after, reason):
    settings = ETTASettings(volume_band=(0.7, 1.3), min_voxels=100, min_entropy_drop=0.03)
    assert verdict(stats(0.2, [1000, 500]), after, settings) == reason


@pytest.mark.parametrize(
    ("before", "after", "activation", "reason"),
    [
        ([1000, 500], [1000, 5000], "softmax", ""),
        ([1000, 0], [10, 990], "softmax", ""),
        ([1000, 500], [1500, 40], "softmax", "volume of class 1 changed by a factor of 0.23"),
        ([1000, 500], [1450, 60], "softmax", ""),
        ([1000, 500], [40, 500], "sigmoid", "volume of class 0 changed by a factor of 0.13"),
        ([100, 500], [1000, 5000], "sigmoid", ""),
    ],
)
def test_changed_input_may_let_a_class_grow_but_not_vanish(before, after, activation, reason):
    settings = ETTASettings(activation=activation)
    assert input_verdict(stats(0.2, before), stats(0.1, after), 0.1, settings) == reason
    assert input_verdict(stats(0.2, before), stats(0.19, after), 0.1, settings).startswith("foreground entropy dropped")


def test_class_absent_before_and_after_does_not_count_even_if_min_voxels_is_0():
    settings = ETTASettings(min_voxels=0)
    assert verdict(stats(0.2, [1000, 500, 0]), stats(0.1, [1000, 500, 0]), settings) == ""
    reason = verdict(stats(0.2, [1000, 500, 0]), stats(0.1, [999, 500, 1]), settings)
    assert reason == "volume of class 2 changed by a factor of inf"


def test_foreground_entropy_is_that_of_all_windows_together():
    both = PredictionStats([0.2, 0.4], [(3.0, 4.0), (1.0, 16.0)])
    assert both.foreground_entropy == pytest.approx(4 / 20)
    assert both.mean_entropy == pytest.approx(0.3)
    assert PredictionStats([0.2], [(0.0, 0.0)]).foreground_entropy == 0


def test_measure_weights_entropy_by_the_foreground():
    network, x = Tiny().eval(), image(size=8)
    found = measure(network, [lambda: x], ETTASettings())
    logits = network(x).detach()
    p = logits.double().softmax(1)
    entropy = -(p * p.log()).sum(1) / np.log(3)
    assert found.foreground_entropy == pytest.approx(float((entropy * (1 - p[:, 0])).sum() / (1 - p[:, 0]).sum()))
    assert found.mean_entropy == pytest.approx(float(entropy.mean()))
    assert found.volumes.tolist() == [int((logits.argmax(1) == k).sum()) for k in range(3)]
    assert found.foreground == [float(found.volumes[1:].sum()) / 8**3]


def test_foreground_of_overlapping_channels_is_that_of_the_largest():
    found = measure(Tiny().eval(), [lambda: image(size=8)], ETTASettings(activation="sigmoid"))
    assert found.foreground == [float(found.volumes.max()) / 8**3]


class Wrapped(nn.Module):
    """Returns what `wrap` makes of the logits."""

    def __init__(self, wrap):
        super().__init__()
        self.network, self.wrap = Tiny(), wrap

    def forward(self, x):
        return self.wrap(self.network(x))


def test_first_of_several_outputs_is_the_prediction():
    x = image(size=8)
    several = Wrapped(lambda logits: (logits, logits[:, :1])).eval()
    assert torch.equal(logits_of(several, x), several.network(x))


@pytest.mark.parametrize(("wrap", "kind"), [(lambda y: {"pred": y}, "dict"), (lambda y: y.mean((2, 3, 4)), "Tensor")])
def test_output_that_is_not_logits_is_refused(wrap, kind):
    message = f"Wrapped returns {kind}, not logits (B, C, ...): test-time adaptation needs a network that returns the"
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        predict(Wrapped(wrap).eval(), image(size=8))


def test_subset_has_the_statistics_of_its_windows():
    one, two = stats(0.1, [10, 5]), stats(0.3, [10, 7], 0.5)
    both = PredictionStats(*(a + b for a, b in zip(vars(one).values(), vars(two).values(), strict=True)))
    found = both.subset([1])
    assert found.entropies("after") == {"entropy_after": 0.3, "foreground_entropy_after": 0.5}
    assert found.volumes.tolist() == [10, 7]
