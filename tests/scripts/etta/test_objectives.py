import numpy as np
import pytest
import torch

from scripts.etta.objectives import class_counts, foreground_weight, mean_entropy, voxel_entropy


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_entropy_is_that_of_the_definition(activation):
    logits = torch.randn(1, 4, 5, 5, dtype=torch.float64).float()
    p = (logits.softmax(1) if activation == "softmax" else logits.sigmoid()).double().numpy()
    if activation == "softmax":
        expected = -(p * np.log(p)).sum(1) / np.log(4)
    else:
        expected = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(1)
    np.testing.assert_allclose(voxel_entropy(logits, activation=activation), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [0.0, 100.0, 1e4])
def test_entropy_of_a_guess_is_one_and_of_certainty_zero(activation, size):
    logits = torch.tensor([size, -size, -size]).reshape(1, 3, 1).requires_grad_()
    entropy = voxel_entropy(logits, activation=activation)
    assert float(entropy.detach()) == pytest.approx(0.0 if size else 1.0, abs=1e-6)
    assert torch.autograd.grad(entropy.sum(), logits)[0].isfinite().all()


def test_gradient_of_mean_entropy_is_the_analytic_one():
    logits = torch.randn(1, 3, 4, 4).requires_grad_()
    (found,) = torch.autograd.grad(mean_entropy(logits, activation="softmax"), logits)
    log_p = logits.detach().log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1, keepdim=True)
    expected = -log_p.exp() * (log_p + entropy) / (np.log(3) * 16)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("activation", "expected"), [("softmax", [2 / 3, 0.75]), ("sigmoid", [0.5, 0.75])])
def test_foreground_weight_is_that_of_all_classes_or_of_the_most_likely_channel(activation, expected):
    logits = torch.tensor([[0.0, 0.0], [0.0, -99.0], [0.0, np.log(3)]])[None]
    torch.testing.assert_close(foreground_weight(logits, activation=activation)[0], torch.tensor(expected))


@pytest.mark.parametrize(("activation", "expected"), [("softmax", [1, 2, 0]), ("sigmoid", [2, 2, 1])])
def test_class_counts_are_of_the_largest_logit_or_of_those_above_0(activation, expected):
    logits = torch.tensor([[2.0, 1.0, -3.0], [1.0, 2.0, -1.0], [-1.0, 1.5, -2.0]])[None, :, :, None]
    assert class_counts(logits, activation=activation).tolist() == expected
