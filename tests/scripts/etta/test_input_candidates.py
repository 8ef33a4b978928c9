import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from scripts.etta.input_candidates import Gamma, Intensities, Unsharp, changed, intensities

UNIT = Intensities(0.0, 1.0)
KINDS = {"gamma": Gamma, "unsharp": Unsharp}


def volume(seed=0, *, channels=1, size=9):
    return torch.rand(1, channels, size, size, size, generator=torch.Generator().manual_seed(seed))


def one(x, kind, amount, seen=UNIT):
    return changed(x, {0: (KINDS[kind](amount),)}, [seen])


def test_intensities_are_those_of_each_channel():
    x = torch.stack([torch.tensor([1.0, 2, 6]), torch.tensor([-1.0, 0, 1])])[None]
    assert intensities(x) == [Intensities(1, 6), Intensities(-1, 1)]


@pytest.mark.parametrize("exponent", [0.4, 1.6])
def test_gamma_keeps_the_ends_of_the_range(exponent):
    x, seen = -2 + 5 * volume(), Intensities(-2.0, 3.0)
    torch.testing.assert_close(one(x, "gamma", exponent, seen), -2 + 5 * ((x + 2) / 5) ** exponent)
    ends = torch.tensor([-2.0, 3.0, -7.0])[None, None]  # the last is padding
    assert one(ends, "gamma", exponent, seen).tolist() == [[[-2, 3, -2]]]


def test_inverse_gamma_restores_the_image():
    x = volume()
    torch.testing.assert_close(one(one(x, "gamma", 2.5), "gamma", 0.4), x)


def test_unsharp_adds_what_a_gaussian_of_one_voxel_takes_away():
    x = volume(size=16)
    smooth = gaussian_filter(x[0, 0].double().numpy(), 1, mode="nearest", truncate=4)
    expected = np.clip(x[0, 0].numpy() + 2.5 * (x[0, 0].numpy() - smooth), 0, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = one(x, "unsharp", 2.5)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["gamma", "unsharp"])
def test_background_of_0_stays_0_within_the_range(kind):
    x = volume() * 4 - 2
    x[..., :4] = 0
    found = one(x, kind, 1.4, intensities(x)[0])
    assert (found[..., :4] == 0).all()
    assert (found[..., 4:] != x[..., 4:]).any()


def test_other_channels_and_the_image_itself_are_not_touched():
    x = volume(channels=3)
    before = x.clone()
    found = changed(x, {1: (Gamma(2.5),)}, intensities(x))
    assert torch.equal(x, before)
    assert torch.equal(found[:, ::2], x[:, ::2])
    assert not torch.equal(found[:, 1], x[:, 1])


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_images_of_one_to_three_axes_keep_shape_and_affine(axes):
    x = MetaTensor(torch.rand(1, 1, *[7] * axes), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    for kind in ("gamma", "unsharp"):
        found = one(x, kind, 1.4)
        assert found.shape == x.shape
        assert torch.equal(found.affine, x.affine)


def test_window_is_changed_as_the_image_but_at_the_border_of_sharpening():
    x = volume(size=16)
    for kind, border in (("gamma", 0), ("unsharp", 4)):
        inner = (..., *[slice(border, 12 - border)] * 3)
        whole, window = one(x, kind, 1.4)[..., :12, :12, :12], one(x[..., :12, :12, :12], kind, 1.4)
        torch.testing.assert_close(window[inner], whole[inner], rtol=0, atol=1e-6)


def test_changes_come_one_after_the_other():
    x = volume()
    both = changed(x, {0: (Gamma(2.5), Unsharp(1))}, [UNIT])
    torch.testing.assert_close(both, one(one(x, "gamma", 2.5), "unsharp", 1))
    assert not torch.allclose(both, one(one(x, "unsharp", 1), "gamma", 2.5))


def test_change_is_named_by_kind_and_amount():
    assert [str(Gamma(0.63)), str(Unsharp(1.0))] == ["gamma 0.63", "unsharp 1"]
