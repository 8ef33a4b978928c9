import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.models.universeg import UniverSeg
from scripts.universeg.inferer import SupportInferer, draw_supports
from scripts.universeg.support import SupportSet
from tests.scripts.universeg.support_files import transform, write_pictures, write_volume


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UniverSeg(features=[4, 4]).eval()


@pytest.fixture
def pictures(tmp_path):
    return SupportSet(write_pictures(tmp_path, n=6), transform())


def batch(image):
    loaded = transform()({"image": str(image), "case": "a"})["image"]
    return MetaTensor(loaded.as_tensor()[None], affine=loaded.affine[None], meta={"is_batch": True})


def expected(network, support, places, channel, slices):
    images, masks = support.tensors(places, channel)
    return network(slices, images, masks)[:, 0].sigmoid().movedim(0, -1)


def test_each_class_has_its_probability_and_channel_0_the_threshold(network, pictures):
    inputs = torch.rand(1, 1, 16, 16, 3)
    found = SupportInferer(pictures, threshold=0.4, batch_size=2)(inputs, network)
    assert found.shape == (1, 3, 16, 16, 3)
    assert (found[:, 0] == 0.4).all()
    for channel in (1, 2):
        one = expected(network, pictures, pictures.showing(channel), channel, inputs[0].movedim(-1, 0))
        torch.testing.assert_close(found[0, channel], one)


def test_ensemble_is_the_mean_of_its_draws(network, pictures):
    inputs = torch.rand(1, 1, 16, 16, 2)
    found = SupportInferer(pictures, support_size=2, ensemble=3, seed=5)(inputs, network)
    draws = draw_supports(pictures.showing(2), 2, 3, seed=(5, 2))
    assert len(set(draws)) > 1
    slices = inputs[0].movedim(-1, 0)
    mean = sum(expected(network, pictures, places, 2, slices) for places in draws) / 3
    torch.testing.assert_close(found[0, 2], mean)


def test_seed_decides_the_draws(network, pictures):
    inputs = torch.rand(1, 1, 16, 16, 1)
    one, same, other = (SupportInferer(pictures, support_size=1, seed=seed)(inputs, network) for seed in (1, 1, 3))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_nearest_labelled_slices_of_the_volume_support_each_slice(network, tmp_path):
    folder, image, _ = write_volume(tmp_path, labelled=(0, 4, 5), depth=6)
    write_volume(tmp_path, labelled=(2,), depth=3, name="other")
    support = SupportSet(folder, transform())
    inputs = batch(image)
    found = SupportInferer(support, support_choice="nearest", support_size=1)(inputs, network)
    own = {one.index: place for place, one in enumerate(support.slices) if one.case == "scan"}
    for z, near in {0: 0, 1: 0, 3: 4, 5: 5}.items():
        one = expected(network, support, [own[near]], 1, inputs.as_tensor()[0, ..., z][None])
        torch.testing.assert_close(found[0, 1, ..., z], one[..., 0])


def test_class_that_no_near_slice_shows_is_absent(network, tmp_path):
    folder, image, _ = write_volume(tmp_path, labelled=(0, 5), class_of=lambda z: 1 if z == 0 else 2)
    support = SupportSet(folder, transform())
    found = SupportInferer(support, support_choice="nearest", support_size=1)(batch(image), network)
    assert found[0, 1].flatten(0, 1).any(0).tolist() == [True, True, True, False, False, False]


def test_nearest_needs_labelled_slices_of_the_volume(network, pictures):
    with pytest.raises(InputError, match="no support slice is of this volume: label some of its slices, or set"):
        SupportInferer(pictures, support_choice="nearest")(torch.rand(1, 1, 16, 16, 4), network)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support_choice": "best"}, "support_choice is 'best': give one of random, nearest"),
        ({"support_size": 0}, "give 1 or more"),
        ({"support_choice": "nearest", "ensemble": 2}, "ensemble is 2: the nearest slices are always the same"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SupportInferer(None, **options)


def test_network_of_several_processes_is_unwrapped(network, pictures):
    inputs, inferer = torch.rand(1, 1, 16, 16, 1), SupportInferer(pictures)
    assert torch.equal(inferer(inputs, torch.nn.DataParallel(network)), inferer(inputs, network))
