import pytest
import torch

from benchmarks.etta.objectives import OBJECTIVES, balanced_entropy, confident_entropy, etta_settings
from scripts.etta.objectives import mean_entropy, voxel_entropy
from scripts.etta.settings import ETTASettings
from tests.scripts.etta.tiny_network import LENIENT, Tiny, assert_restored, image, predict, state


def test_balanced_entropy_weights_each_predicted_class_alike():
    logits = torch.zeros(1, 2, 100)
    logits[:, 0, :90], logits[:, 1, 90:] = 3.0, 1.0
    entropy = voxel_entropy(logits, activation="softmax")[0]
    loss = balanced_entropy(logits, activation="softmax")
    assert float(loss) == pytest.approx(float(entropy[0] + entropy[-1]) / 2, rel=1e-5)


def test_balanced_entropy_of_overlapping_channels_weights_foreground_and_background_alike():
    logits = torch.full((1, 2, 100), -3.0)
    logits[:, 1, 90:] = 1.0
    entropy = voxel_entropy(logits, activation="sigmoid")[0]
    loss = balanced_entropy(logits, activation="sigmoid")
    assert float(loss) == pytest.approx(float(entropy[0] + entropy[-1]) / 2, rel=1e-5)


def test_balanced_entropy_leaves_out_classes_of_few_voxels():
    logits = torch.zeros(1, 2, 30_000)
    logits[:, 0], logits[:, 1, :2] = 3.0, 5.0
    entropy = voxel_entropy(logits, activation="softmax")[0]
    assert float(balanced_entropy(logits, activation="softmax")) == pytest.approx(float(entropy[-1]), rel=1e-4)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_confident_entropy_is_the_mean_weighted_by_one_minus_entropy(activation):
    logits = torch.randn(1, 3, 50)
    entropy = voxel_entropy(logits, activation=activation)
    expected = float(((1 - entropy) * entropy).sum() / (1 - entropy).sum())
    assert float(confident_entropy(logits, activation=activation)) == pytest.approx(expected, rel=1e-5)


def test_confident_entropy_of_guesses_has_no_gradient():
    logits = torch.zeros(1, 3, 50, requires_grad=True)
    (gradient,) = torch.autograd.grad(confident_entropy(logits, activation="softmax"), logits)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_lowers_the_entropy_of_a_network(objective, activation):
    settings = ETTASettings(**{**vars(LENIENT), "activation": activation, "objective": OBJECTIVES[objective]})
    network = Tiny().eval()
    before = state(network)
    _, (outcome,) = predict(network, image(), settings)
    assert outcome.entropy_after < outcome.entropy_before
    assert_restored(network, before)


def test_settings_take_an_objective_by_name():
    assert etta_settings({"lr": 0.001, "objective": "balanced"}).objective is balanced_entropy
    assert etta_settings({"lr": 0.001}) == ETTASettings(lr=0.001)
    assert etta_settings({}).objective is mean_entropy
