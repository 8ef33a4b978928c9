import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts.common.errors import InputError
from scripts.segvol.losses import PromptLoss, dice_loss


def case(*, seed=0, shape=(2, 5, 4, 6, 6)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator)
    return logits.requires_grad_(), (torch.rand(shape, generator=generator) > 0.6).to(torch.int8)


def literal(logits, target):
    """The formula, mask by mask."""
    p, t = logits.sigmoid(), target.float()
    dice = 1 - 2 * (p * t).sum() / (p.sum() + t.sum() + 1)
    return dice + binary_cross_entropy_with_logits(logits, t)


def test_loss_is_the_mean_of_organs_and_a_tenth_of_that_of_pseudo_masks():
    logits, target = case()
    organs = [literal(logits[b, t], target[b, t]) for b in range(2) for t in range(3)]
    pseudo = [literal(logits[b, t], target[b, t]) for b in range(2) for t in (3, 4)]
    expected = torch.stack(organs).mean() + 0.1 * torch.stack(pseudo).mean()
    torch.testing.assert_close(PromptLoss(pseudo=2)(logits, target), expected)


def test_smoothing_is_in_the_denominator_alone():
    logits = torch.full((2, 8), 40.0)
    target = torch.stack([torch.ones(8), torch.zeros(8)])
    torch.testing.assert_close(dice_loss(logits, target), torch.tensor([1 - 16 / 17, 1.0]))


def test_unknown_voxels_count_as_background():
    logits, target = case()
    unknown = torch.where(target == 0, torch.tensor(-1, dtype=torch.int8), target)
    torch.testing.assert_close(PromptLoss()(logits, unknown), PromptLoss()(logits, target))


def test_absent_target_adds_nothing():
    logits, target = case()
    target[:, 2] = 0
    target[1, 0] = -1
    loss = PromptLoss()(logits, target)
    rest = [literal(logits[b, t], target[b, t]) for b, t in [(0, 0), (0, 1), (0, 3), (0, 4), (1, 1), (1, 3), (1, 4)]]
    torch.testing.assert_close(loss, torch.stack(rest).mean())
    loss.backward()
    assert (logits.grad[:, 2] == 0).all()


@pytest.mark.parametrize("shape", [(2, 3, 4, 4, 4), (2, 0, 4, 4, 4)])
def test_batch_without_any_target_has_loss_and_gradient_0(shape):
    logits, target = case(shape=shape)
    loss = PromptLoss(pseudo=min(1, shape[1]))(logits, target * 0)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_large_logits_stay_finite():
    logits = torch.full((1, 1, 2, 2, 2), 1e4, dtype=torch.bfloat16, requires_grad=True)
    loss = PromptLoss()(logits, torch.ones(1, 1, 2, 2, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_wrong_shapes_and_weights_are_refused():
    with pytest.raises(InputError, match=r"logits \(1, 2, 2, 2, 2\) and target \(1, 1, 2, 2, 2\)"):
        PromptLoss()(torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2))
    with pytest.raises(InputError, match="pseudo is -1"):
        PromptLoss(pseudo=-1)
