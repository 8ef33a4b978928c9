import pytest
import torch
from monai.data import MetaTensor

from scripts.etta.input_candidates import Gamma, Intensities, changed, intensities
from scripts.etta.spectrum import Sharpness

UNIT = Intensities(0.0, 1.0)
SHARPEN = Sharpness(((-0.2, 1.4, -0.2),) * 3)
CHANGES = [Gamma(1.4), SHARPEN]


def volume(seed=0, *, channels=1, size=9):
    return torch.rand(1, channels, size, size, size, generator=torch.Generator().manual_seed(seed))


def one(x, change, seen=UNIT):
    return changed(x, {0: (change,)}, [seen])


def test_intensities_are_those_of_each_channel():
    x = torch.stack([torch.tensor([1.0, 2, 6]), torch.tensor([-1.0, 0, 1])])[None]
    assert intensities(x) == [Intensities(1, 6), Intensities(-1, 1)]


@pytest.mark.parametrize("exponent", [0.4, 1.6])
def test_gamma_keeps_the_ends_of_the_range(exponent):
    x, seen = -2 + 5 * volume(), Intensities(-2.0, 3.0)
    torch.testing.assert_close(one(x, Gamma(exponent), seen), -2 + 5 * ((x + 2) / 5) ** exponent)
    ends = torch.tensor([-2.0, 3.0, -7.0])[None, None]  # the last is padding
    assert one(ends, Gamma(exponent), seen).tolist() == [[[-2, 3, -2]]]


def test_inverse_gamma_restores_the_image():
    x = volume()
    torch.testing.assert_close(one(one(x, Gamma(2.5)), Gamma(0.4)), x)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_background_of_0_stays_0_within_the_range(change):
    x = volume() * 4 - 2
    x[..., :4] = 0
    found = one(x, change, intensities(x)[0])
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
    for change in (Gamma(1.4), Sharpness(SHARPEN.kernels[:axes])):
        found = one(x, change)
        assert found.shape == x.shape
        assert torch.equal(found.affine, x.affine)


def test_window_is_changed_as_the_image_but_at_the_border_of_a_filter():
    x = volume(size=16)
    for change, border in ((Gamma(1.4), 0), (SHARPEN, 1)):
        inner = (..., *[slice(border, 12 - border)] * 3)
        whole, window = one(x, change)[..., :12, :12, :12], one(x[..., :12, :12, :12], change)
        torch.testing.assert_close(window[inner], whole[inner], rtol=0, atol=1e-6)


def test_changes_come_one_after_the_other():
    x = volume()
    both = changed(x, {0: (Gamma(2.5), SHARPEN)}, [UNIT])
    torch.testing.assert_close(both, one(one(x, Gamma(2.5)), SHARPEN))
    assert not torch.allclose(both, one(one(x, SHARPEN), Gamma(2.5)))


def test_change_is_named_by_its_kind():
    assert [str(Gamma(0.63)), str(SHARPEN)] == ["gamma 0.63", "spectrum"]
