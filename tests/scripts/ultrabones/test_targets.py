import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.ultrabones.targets import BoneBandd, BonePixelsd


def test_band_and_skeleton_are_the_pixels_within_their_distances_of_bone():
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(1, 30, 40, generator=generator) > 0.99).float()
    bone = label[0].nonzero().float()
    pixels = torch.cartesian_prod(torch.arange(30.0), torch.arange(40.0))
    distance = torch.cdist(pixels, bone).min(1).values.reshape(30, 40)
    target = BoneBandd("label")({"label": label})["label"]
    assert torch.equal(target, torch.stack([distance <= 3, distance <= 1]).float())


def test_empty_label_gives_an_empty_target():
    assert not BoneBandd("label")({"label": torch.zeros(1, 8, 9)})["label"].any()


def test_frames_are_treated_by_themselves_and_the_skeleton_can_be_left_out():
    label = torch.zeros(1, 9, 9, 2)
    label[0, 4, 4, 0] = 1
    band = BoneBandd("label", skeleton_px=None)({"label": label})["label"]
    assert torch.equal(band[..., 0], BoneBandd("label")({"label": label[..., 0]})["label"][:1])
    assert not band[..., 1].any()


def test_label_of_bone_alone_gives_a_target_of_bone_alone():
    assert BoneBandd("label")({"label": torch.ones(1, 8, 9)})["label"].all()


def test_image_and_place_of_the_label_stay():
    affine = torch.diag(torch.tensor([0.5, 0.25, 1.0, 1.0]))
    case = {"label": MetaTensor(torch.ones(1, 8, 9), affine=affine), "image": torch.ones(1)}
    done = BoneBandd("label", band_px=1, skeleton_px=0)(case)
    assert torch.equal(done["label"].affine, MetaTensor(torch.ones(1), affine=affine).affine)
    assert done["image"] is case["image"]
    assert BoneBandd("label", allow_missing_keys=True)({}) == {}


@pytest.mark.parametrize("options", [{"band_px": -1}, {"skeleton_px": float("nan")}])
def test_impossible_distances_are_refused(options):
    with pytest.raises(InputError, match="give distances of 0 pixels or more"):
        BoneBandd("label", **options)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"the label has shape \(2, 4, 4\): give \(1, H, W\) or \(1, H, W, Z\)"):
        BoneBandd("label")({"label": torch.ones(2, 4, 4)})


@pytest.mark.parametrize(
    ("values", "bone"), [([0, 7, 255], [0, 0, 1]), ([0, 1, 1], [0, 1, 1]), ([0, 200, 0], [0, 0, 0])]
)
def test_bone_is_255_or_1_of_a_mask(values, bone):
    done = BonePixelsd("label")({"label": MetaTensor(torch.tensor(values, dtype=torch.float32))})["label"]
    assert done.tolist() == bone
    assert isinstance(done, MetaTensor)
