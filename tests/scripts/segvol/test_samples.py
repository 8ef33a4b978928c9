import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import set_rnd

from scripts.common.errors import InputError
from scripts.data.places import ForegroundPlacesd
from scripts.segvol.prompt_sampling import MAX_POINTS, tight_box
from scripts.segvol.samples import ABSENT, PSEUDO, SAMPLE_KEYS, DrawPromptsd, RandZoomOrCropd

SIZE = (8, 16, 16)


def case(shape=(12, 30, 34)):
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(1, *shape)
    label[0, 2:10, 4:20, 4:20] = 1
    label[0, 3:5, 24:27, 28:31] = 2
    volumes = {"image": torch.rand(1, *shape, generator=generator), "label": label}
    volumes["pseudo"] = torch.randint(0, 3, (1, *shape), generator=generator).to(torch.int16)
    return {key: MetaTensor(volume, affine=torch.diag(torch.tensor([5.0, 1, 1, 1]))) for key, volume in volumes.items()}


def drawn(transform, data, seed):
    set_rnd(transform, seed)
    return transform(data)


def sample():
    """Two organs and three regions, of which 3 lies within the box of 2."""
    label, pseudo = torch.zeros(1, *SIZE), torch.ones(1, *SIZE, dtype=torch.int16)
    label[0, 2:5, 3:7, 3:9], label[0, 6, 12, 12] = 4, 7
    pseudo[0, 2:6, 4:12, 4:12], pseudo[0, 3:5, 6:8, 6:8] = 2, 3
    return {"image": torch.rand(1, *SIZE), "label": label, "pseudo": pseudo}


def test_labels_keep_their_class_ids_and_dtype_when_resized():
    out = RandZoomOrCropd(["image", "label", "pseudo"], spatial_size=SIZE, crop_prob=0)(case())
    assert {key: tuple(out[key].shape) for key in out} == dict.fromkeys(("image", "label", "pseudo"), (1, *SIZE))
    assert out["label"].unique().tolist() == [0, 1, 2]
    assert out["pseudo"].dtype == torch.int16
    assert torch.isin(out["image"].as_tensor(), case()["image"].as_tensor()).all()  # nearest, as in inference


def test_every_class_is_as_likely_to_be_in_the_middle_of_a_crop():
    """The published code never centres on the first class."""
    transform = RandZoomOrCropd(["image", "label"], spatial_size=(2, 2, 2), crop_prob=1)
    data = ForegroundPlacesd()({key: value for key, value in case().items() if key != "pseudo"})
    centres = [int(drawn(transform, data, seed)["label"][0, 1, 1, 1]) for seed in range(300)]
    shares = np.bincount(centres, minlength=3) / len(centres)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.09)


def test_crop_of_a_thin_volume_is_padded_with_zeros_as_in_inference():
    data = ForegroundPlacesd()(case((4, 30, 34)) | {"label": case()["label"][:, 2:6]})
    keys = ["image", "label", "pseudo"]
    out = drawn(RandZoomOrCropd(keys, spatial_size=SIZE, crop_prob=1), data, 3)
    for key in keys:
        assert out[key].shape == (1, *SIZE)
        assert (out[key][0, [0, 1, 6, 7]] == 0).all()
    assert (out["image"][0, 2:6] > 0).any()


def test_same_seed_gives_the_same_sample_and_another_one_another():
    data = ForegroundPlacesd()(case())
    transform = RandZoomOrCropd(["image", "label", "pseudo"], spatial_size=SIZE, crop_prob=0.5)
    one, same, other = ([drawn(transform, data, seed)["image"] for seed in seeds] for seeds in ((1, 2), (1, 2), (3, 4)))
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))


def test_prompts_mean_their_masks():
    out = drawn(DrawPromptsd(organs=5, pseudo=2), sample(), 0)
    assert out["target"].shape == (7, *SIZE)
    assert out["points"].shape == (7, MAX_POINTS, 3)
    assert out["organs"][5:].tolist() == [PSEUDO] * 2
    assert set(out["organs"][:5].tolist()) == {4, 7}
    for target, *prompts in zip(*(out[key].numpy() for key in SAMPLE_KEYS), strict=True):
        points, labels, box, organ = prompts
        assert target.any()
        given = labels >= 0
        assert (target[tuple(points[given].T)] == labels[given]).all()
        if organ:
            assert box.tolist() == tight_box(sample()["label"][0].numpy() == organ).tolist()


def test_region_meant_by_its_box_includes_what_lies_inside():
    for seed in range(30):
        out = drawn(DrawPromptsd(organs=1, pseudo=2), sample(), seed)
        if out["boxes"][2].tolist() == [2, 4, 4, 5, 11, 11]:
            assert out["target"][2].sum() == 4 * 8 * 8
            break
    else:
        pytest.fail("region 2 was never drawn")
    masks = [drawn(DrawPromptsd(organs=1, pseudo=1), sample(), seed)["target"][1].sum() for seed in range(30)]
    assert 4 * 8 * 8 not in masks  # meant by points


def test_boxes_of_organs_are_moved_by_up_to_the_share_and_those_of_regions_never():
    boxes, regions = [], []
    for seed in range(200):
        out = drawn(DrawPromptsd(organs=2, pseudo=2, box_jitter=0.4), sample(), seed)
        boxes += [out["boxes"][i].numpy() for i in range(2) if out["organs"][i] == 4]
        regions += out["boxes"][3:].tolist()
    tight = tight_box(sample()["label"][0].numpy() == 4)
    moved = np.array(boxes) - tight
    largest = np.abs(moved).max(axis=0)
    assert (largest >= 1).all()
    assert (largest <= np.rint(0.4 * np.tile(tight[3:] - tight[:3] + 1, 2))).all()
    assert 0.05 < (moved == 0).all(axis=1).mean() < 0.6  # tight ones are among them
    assert {tuple(one) for one in regions} <= {(0, 0, 0, 7, 15, 15), (2, 4, 4, 5, 11, 11), (3, 6, 6, 4, 7, 7)}


def test_validation_asks_for_each_organ_once_and_always_the_same():
    transform = DrawPromptsd(seed=3)
    one, other = transform(sample()), transform(sample())
    assert one["organs"].tolist() == [4, 7]
    assert torch.equal(one["points"], other["points"])


def test_sample_without_organ_or_region_has_empty_masks():
    empty = {key: value * 0 for key, value in sample().items()}
    out = DrawPromptsd(organs=2, pseudo=2)(empty)
    assert out["organs"].tolist() == [ABSENT, ABSENT, PSEUDO, PSEUDO]
    assert not out["target"].any()
    assert (out["point_labels"] < 1).all()
    assert DrawPromptsd(seed=0)(empty)["organs"].tolist() == [ABSENT]


def test_wrong_numbers_are_refused():
    with pytest.raises(InputError, match="organs is 0 and pseudo 0"):
        DrawPromptsd(organs=0)
    with pytest.raises(InputError, match=r"box_jitter is -0\.1"):
        DrawPromptsd(box_jitter=-0.1)
