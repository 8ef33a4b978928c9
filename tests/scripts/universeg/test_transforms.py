import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.universeg.transforms import ScaleSlicesd

IMAGE = torch.tensor([[0.0, 10.0], [30.0, 50.0]])[None, :, None, :]  # two slices: 0, 30 and 10, 50


def scaled(image=IMAGE, **options):
    return ScaleSlicesd("image", **options)({"image": image})["image"]


def test_each_slice_is_scaled_by_its_own_values():
    assert scaled()[0, :, 0].tolist() == [[0, 0], [1, 1]]


def test_volume_is_scaled_by_all_values():
    torch.testing.assert_close(scaled(normalization="volume"), IMAGE / 50)


def test_range_clips_before_scaling():
    torch.testing.assert_close(
        scaled(normalization="volume", intensity_range=(10, 30))[0, :, 0], torch.tensor([[0.0, 0], [1, 1]])
    )


def test_constant_slice_becomes_zero():
    assert not scaled(torch.full((1, 2, 2, 3), 7.0)).any()


def test_metadata_stay():
    image = MetaTensor(IMAGE, affine=torch.diag(torch.tensor([2.0, 2, 3, 1])), meta={"case": "p1"})
    assert scaled(image).meta["case"] == "p1"
    assert scaled(image).affine[0, 0] == 2


def test_none_takes_intensities_of_0_to_1_only():
    torch.testing.assert_close(scaled(IMAGE / 50, normalization="none"), IMAGE / 50)
    with pytest.raises(InputError, match=r"intensities are 0 to 50, not in 0..1: set normalization to slice"):
        scaled(normalization="none")


@pytest.mark.parametrize("options", [{"normalization": "max"}, {"intensity_range": [1, 1]}, {"intensity_range": [1]}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(InputError, match=r"give (one of slice, volume, none|two numbers)"):
        scaled(**options)
