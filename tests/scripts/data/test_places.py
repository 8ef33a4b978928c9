import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import FgBgToIndicesd

from scripts.common.errors import InputError
from scripts.data.places import MAX_PLACES, PLACES, ForegroundPlacesd


def lists(item, **options):
    """Class id to its number of voxels and its places."""
    places = ForegroundPlacesd(**options)(item)[PLACES]
    return {key: (count, places["at"][first:end]) for key, (count, first, end) in places["classes"].items()}


def case(shape=(9, 8, 7), classes=4, seed=0, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    label = torch.from_numpy(rng.integers(0, classes, (1, *shape))).to(dtype)
    image = MetaTensor(torch.from_numpy(rng.normal(size=(2, *shape)).astype(np.float32)))
    return {"image": image, "label": MetaTensor(label)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_places_of_few_voxels_are_those_of_monai(dtype):
    found = lists(case(dtype=dtype))
    monai = FgBgToIndicesd("label", image_key="image")(case(dtype=dtype))
    assert found[0][1].tolist() == monai["label_bg_indices"].tolist()
    foreground = torch.cat([found[key][1] for key in (1, 2, 3)])
    assert sorted(foreground.tolist()) == monai["label_fg_indices"].tolist()
    label = case()["label"].flatten()
    for key, (count, at) in found.items():
        assert count == len(at)
        assert set(label[at.long()].tolist()) == {key}


def test_of_many_voxels_some_are_drawn_the_same_ones_every_time():
    large = case(shape=(40, 40, 40), classes=3)
    found = lists(large)
    again = lists({**large, "label": large["label"].to(torch.int16)})
    for key in (0, 1, 2):
        count, at = found[key]
        assert count > MAX_PLACES
        assert len(set(at.tolist())) == len(at) == MAX_PLACES
        assert at.tolist() == sorted(at.tolist()) == again[key][1].tolist()
        assert at.dtype == torch.int32
        places = np.stack(np.unravel_index(at.numpy(), (40, 40, 40)))
        assert np.abs(places.mean(axis=1) - 19.5).max() < 1.5, "spread over the volume"


def test_background_is_where_a_channel_is_above_the_threshold():
    label = torch.tensor([[[[0, 0, 0, 5]]]])
    image = torch.tensor([[[[0.0, 2.0, 0.0, 0.0]]], [[[0.0, 0.0, 3.0, 0.0]]]])
    assert lists({"image": image, "label": label})[0][1].tolist() == [1, 2]
    above = lists({"image": image, "label": label}, image_threshold=2.5)
    assert above[0][1].tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_ignored_voxels_are_in_no_list(dtype):
    label = torch.tensor([[[[0, 255, 1]]]], dtype=dtype)
    item = {"image": torch.ones(1, 1, 1, 3), "label": label, "ignored_label": 255}
    assert {key: at.tolist() for key, (_, at) in lists(item).items()} == {0: [0], 1: [2]}


def test_label_without_foreground_and_image_of_air_have_no_lists():
    assert lists({"image": torch.zeros(1, 2, 2, 2), "label": torch.zeros(1, 2, 2, 2)}) == {}


def test_label_of_regions_or_on_another_grid_is_refused():
    item = {"image": torch.zeros(1, 2, 2, 2), "label": torch.zeros(3, 2, 2, 2)}
    message = "label is (3, 2, 2, 2), image (1, 2, 2, 2): give class ids (1, X, Y, Z) on its grid."
    with pytest.raises(InputError, match=re.escape(message)):
        ForegroundPlacesd()(item)
