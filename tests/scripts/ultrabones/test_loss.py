import pytest
import torch

from scripts.common.errors import InputError
from scripts.ultrabones.loss import BoneSurfaceLoss


def case(*, seed=0, batch=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 1, 8, 10, generator=generator)
    target = (torch.rand(batch, 2, 8, 10, generator=generator) > 0.7).float()
    return logits.requires_grad_(), target


def literal(logits, target):
    """The formulas of the specification."""
    p, t, s = logits.sigmoid(), target[:, :1], target[:, 1:]
    dice = 1 - 2 * (p * t).sum() / (p.sum() + t.sum())
    bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    found = torch.stack([(p[i] * s[i]).sum() / s[i].sum() for i in range(len(p))])
    return dice, bce, found.mean()


def test_loss_is_dice_and_cross_entropy_less_a_tenth_of_the_skeleton_recall():
    logits, target = case()
    dice, bce, recall = literal(logits.double(), target.double())
    assert BoneSurfaceLoss()(logits, target).item() == pytest.approx((dice + bce - 0.1 * recall).item(), abs=1e-5)
    weighted = BoneSurfaceLoss(lambda_dice=0.5, lambda_bce=2, lambda_skeleton=0)(logits, target)
    assert weighted.item() == pytest.approx((0.5 * dice + 2 * bce).item(), abs=1e-5)


def test_empty_target_leaves_cross_entropy_alone_and_has_a_finite_gradient():
    logits, target = case()
    loss = BoneSurfaceLoss()(logits, torch.zeros_like(target))
    loss.backward()
    assert loss.item() == pytest.approx(torch.nn.functional.softplus(logits).mean().item(), rel=1e-5)
    assert torch.isfinite(logits.grad).all()


def test_image_without_bone_counts_as_0_in_the_skeleton_recall():
    logits, target = case(batch=2)
    target[1] = 0
    dice, bce, _ = literal(logits, target)
    recall = literal(logits[:1], target[:1])[2] / 2
    assert BoneSurfaceLoss()(logits, target).item() == pytest.approx((dice + bce - 0.1 * recall).item(), abs=1e-5)


def test_half_precision_and_labels_of_doubles_are_computed_in_float32():
    logits, target = case()
    loss = BoneSurfaceLoss()(logits.bfloat16(), target.double())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, BoneSurfaceLoss()(logits.bfloat16().float(), target))


@pytest.mark.parametrize("shape", [(3, 1, 8, 10), (3, 2, 8, 9), (2, 2, 8, 10)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"give \(B, 1, H, W\) and \(B, 2, H, W\)"):
        BoneSurfaceLoss()(case()[0], torch.zeros(shape))


def test_negative_weight_is_refused():
    with pytest.raises(InputError, match=r"lambda_skeleton -0\.1: give weights of 0 or more"):
        BoneSurfaceLoss(lambda_skeleton=-0.1)
