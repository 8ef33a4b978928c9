import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from torch.nn.functional import interpolate

from scripts.common.errors import InputError
from scripts.inference.axis_maps import way_back
from scripts.ultrabones.transforms import CheckUltrasoundd, ResizeFramesd, ScaleFramesd


def case(shape=(1, 81, 95, 2)):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator)
    return {"image": MetaTensor(image), "label": MetaTensor((image > 0.9).float())}


def test_frames_are_resized_with_antialiasing_and_labels_by_nearest_neighbours():
    given = case()
    done = ResizeFramesd(["image", "label"], size=64)(given)
    for z in range(2):
        image, label = (given[key].as_tensor()[None, ..., z] for key in ("image", "label"))
        expected = interpolate(image, (64, 64), mode="bilinear", antialias=True, align_corners=False)[0]
        assert torch.equal(done["image"].as_tensor()[..., z], expected)
        assert torch.equal(done["label"].as_tensor()[..., z], interpolate(label, (64, 64), mode="nearest-exact")[0])
    assert torch.equal(given["image"].as_tensor(), case()["image"].as_tensor())


def test_frames_go_back_to_their_own_grid():
    resize = ResizeFramesd("image", size=32)
    done = resize(case())
    assert way_back(done["image"]).shape == (81, 95, 2)
    done["pred"] = done["image"]
    assert Invertd("pred", resize, orig_keys="image")(done)["pred"].shape == (1, 81, 95, 2)


def test_frames_of_the_right_size_and_cases_without_label_stay():
    given = case((1, 32, 32, 1))
    done = ResizeFramesd(["image", "label"], size=32, allow_missing_keys=True)({"image": given["image"]})
    torch.testing.assert_close(done["image"].as_tensor(), given["image"].as_tensor())
    assert "label" not in done


@pytest.mark.parametrize("size", [0, 48, 100])
def test_other_sizes_are_refused(size):
    with pytest.raises(InputError, match=f"image_size is {size}: give a multiple of 32"):
        ResizeFramesd("image", size=size)


def test_text_alone_is_no_ultrasound_and_a_dark_frame_is():
    image = torch.zeros(1, 100, 100, 1)
    image[0, :10, :30] = 200
    named = MetaTensor(image, meta={"filename_or_obj": "a/p1.png"})
    with pytest.raises(InputError, match=r"a/p1.png: all but 3.0% of its pixels have one intensity: it shows text"):
        CheckUltrasoundd("image")({"image": named})
    image[0, :60] = torch.rand(60, 100, 1) * 30
    assert CheckUltrasoundd("image")({"image": image})["image"] is image


def test_intensities_beyond_white_are_refused():
    with pytest.raises(InputError, match="intensities are 0 to 4095, not 0 to 255: set white to that of the images"):
        ScaleFramesd("image")({"image": torch.tensor([0.0, 4095.0])})
    with pytest.raises(InputError, match="intensities are -3 to 1"):
        ScaleFramesd("image")({"image": torch.tensor([-3.0, 1.0])})
    with pytest.raises(InputError, match="white is 0: give the intensity of white"):
        ScaleFramesd("image", white=0)
