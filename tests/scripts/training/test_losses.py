import re

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss

from scripts.common.errors import InputError
from scripts.training.losses import MaskedDiceCELoss

CLASSES = 4
VARIANTS = {
    "softmax": {"softmax": True},
    "sigmoid": {"sigmoid": True},
    "no background": {"softmax": True, "include_background": False},
    "batch": {"softmax": True, "batch": True},
    "bundle": {"softmax": True, "smooth_nr": 0.0, "smooth_dr": 1e-6},
    "weights": {"softmax": True, "lambda_dice": 0.3, "lambda_ce": 2.0},
    "class weights": {"softmax": True, "weight": torch.tensor([0.1, 1, 0, 3]).double()},
    "class weights, no background": {"softmax": True, "include_background": False, "weight": torch.arange(4).double()},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def options(request):
    return {"to_onehot_y": True, **request.param}


def batch(seed=0, shape=(2, 7, 6, 5), ignored=0.0):
    generator = torch.Generator().manual_seed(seed)
    images, *grid = shape
    logits = torch.randn((images, CLASSES, *grid), generator=generator, dtype=torch.float64)
    label = torch.randint(CLASSES, (images, 1, *grid), generator=generator)
    label[torch.rand(label.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), label


def value_and_gradient(loss, logits, label):
    value = loss(logits, label)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def test_loss_without_ignored_voxels_equals_monai_s(options):
    logits, label = batch()
    ours, theirs = (value_and_gradient(kind(**options), logits, label) for kind in (MaskedDiceCELoss, DiceCELoss))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def cut_out(volume, keep):
    """Take the kept voxels of one image as a row."""
    return volume[:, :, keep[0, 0]] if volume.shape[0] == 1 else None


def test_ignored_voxels_count_as_if_they_were_cut_out(options):
    logits, label = batch(1, shape=(1, 9, 8, 7), ignored=0.3)
    known = label != 255
    value, gradient = value_and_gradient(MaskedDiceCELoss(**options), logits, label)
    part = cut_out(logits, known).detach().requires_grad_()
    expected, expected_gradient = value_and_gradient(DiceCELoss(**options), part, cut_out(label, known))
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(cut_out(gradient, known), expected_gradient, rtol=1e-10, atol=1e-12)
    assert torch.count_nonzero(gradient * ~known) == 0, "a gradient at an ignored voxel"


def test_logits_at_ignored_voxels_change_nothing(options):
    logits, label = batch(2, ignored=0.4)
    loss = MaskedDiceCELoss(**options)
    elsewhere = torch.where(label == 255, logits.detach() * -50 + 3, logits.detach())
    assert loss(elsewhere, label) == loss(logits, label)


def test_images_are_averaged_after_masking_each():
    logits, label = batch(3, ignored=0.2)
    label[1, :, :5] = 255
    options = {"to_onehot_y": True, "softmax": True, "lambda_ce": 0.0}
    alone = [MaskedDiceCELoss(**options)(logits[[i]], label[[i]]) for i in range(2)]
    torch.testing.assert_close(MaskedDiceCELoss(**options)(logits, label), sum(alone) / 2)


def test_an_image_without_known_voxels_is_left_out(options):
    logits, label = batch(4, ignored=0.2)
    label[1] = 255
    loss = MaskedDiceCELoss(**options)
    value, gradient = value_and_gradient(loss, logits, label)
    torch.testing.assert_close(value, loss(logits[:1], label[:1]).detach())
    assert torch.count_nonzero(gradient[1]) == 0
    assert torch.count_nonzero(gradient[0]) > 0


def test_loss_and_gradients_are_0_if_all_voxels_are_ignored(options):
    logits, label = batch(5, ignored=2.0)
    value, gradient = value_and_gradient(MaskedDiceCELoss(**options), logits, label)
    assert value == 0
    assert torch.count_nonzero(gradient) == 0
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_may_have_any_dtype_and_be_meta_tensors(dtype):
    logits, label = batch(6, ignored=0.3)
    loss = MaskedDiceCELoss(softmax=True)
    assert loss(logits, MetaTensor(label.to(dtype))) == loss(logits, label)


def test_other_labels_can_be_ignored():
    logits, label = batch(7, ignored=0.3)
    loss, other = MaskedDiceCELoss(softmax=True), MaskedDiceCELoss(softmax=True, ignore_index=-1)
    assert other(logits, torch.where(label == 255, -1, label)) == loss(logits, label)


def saved_bytes(loss, logits, label):
    """Add up what the graph keeps until the gradients are computed, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(logits, label)
    assert value.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_graph_keeps_one_mask_more_than_monai_s(batch_size):
    logits, label = batch(8, shape=(batch_size, 20, 20, 20))
    logits = logits.detach().float().requires_grad_()
    options = {"to_onehot_y": True, "softmax": True}
    ours, theirs = (saved_bytes(kind(**options), logits, label) for kind in (MaskedDiceCELoss, DiceCELoss))
    mask = label.numel() * 4
    small = 1000
    assert ours <= theirs + mask + small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set to_onehot_y and one of sigmoid and softmax to true"),
        ({"softmax": True, "sigmoid": True}, "set to_onehot_y and one of sigmoid and softmax to true"),
        ({"softmax": True, "to_onehot_y": False}, "set to_onehot_y and one of sigmoid and softmax to true"),
        ({"softmax": True, "smooth_dr": 0.0}, "smooth_dr has to be above 0; "),
        ({"softmax": True, "lambda_ce": -1.0}, "smooth_dr has to be above 0; smooth_nr, lambda_dice and lambda_ce 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        MaskedDiceCELoss(**options)


@pytest.mark.parametrize(
    ("logits", "label", "ignore_index", "message"),
    [
        ((2, 4, 5, 5), (2, 4, 5, 5), 255, "logits have shape (2, 4, 5, 5) and labels (2, 4, 5, 5): give (B, C, …)"),
        ((2, 1, 5, 5), (2, 1, 5, 5), 255, "logits have shape (2, 1, 5, 5) and labels (2, 1, 5, 5)"),
        ((2, 4, 5, 5), (2, 1, 5, 5), 3, "ignore_index 3 is one of the 4 classes: give another label."),
    ],
)
def test_shapes_and_ignored_labels_that_do_not_fit_are_refused(logits, label, ignore_index, message):
    loss = MaskedDiceCELoss(softmax=True, ignore_index=ignore_index)
    with pytest.raises(InputError, match="^" + re.escape(message)):
        loss(torch.zeros(logits), torch.zeros(label))
