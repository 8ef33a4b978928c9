import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.pretrain.transforms import (
    MaskIgnoredd,
    NormalizeContrastsd,
    RandDropChannelsd,
    WarnContrastsd,
    body_range,
    present,
)
from tools.dixon_phantom import dixon_phantom
from tools.torso import torso_phantom

SHAPE, SPACING_MM = (50, 38, 44), (6.0, 6.0, 6.0)
AFFINE = np.diag([*SPACING_MM, 1.0])


@pytest.fixture(scope="module")
def dixon():
    """Four contrasts of a torso, (4, X, Y, Z) in RAS."""
    voxels = np.moveaxis(dixon_phantom(np.random.default_rng(0), SHAPE, SPACING_MM)[0], -1, 0).astype(np.float32)
    return MetaTensor(torch.from_numpy(voxels.copy()), affine=AFFINE, meta={"case": "p1"})


def normalized(image):
    return NormalizeContrastsd("image")({"image": image})["image"]


def test_each_channel_runs_from_0_to_1_and_absent_ones_stay_0(dixon):
    image = dixon.clone()
    image[3] = 0
    done = normalized(image)
    assert done.amin(dim=(1, 2, 3)).tolist() == [0, 0, 0, 0]
    assert done.amax(dim=(1, 2, 3)).tolist() == [1, 1, 1, 0]
    assert isinstance(done, MetaTensor)
    assert torch.equal(done.affine, dixon.affine)
    assert image[0].max() > 1, "the input was changed"


def test_a_channel_is_scaled_alike_whether_others_are_there_or_not(dixon):
    alone = torch.zeros_like(dixon)
    alone[1] = dixon[1]
    assert torch.equal(normalized(alone)[1], normalized(dixon)[1])


def test_a_factor_and_a_few_bright_voxels_do_not_matter(dixon):
    bright = dixon * 7
    bright[:, 20, 20, 20] = 1e6
    same = torch.ones(dixon.shape[1:], dtype=torch.bool)
    same[20, 20, 20] = False
    a, b = (normalized(each).as_tensor()[:, same] for each in (dixon, bright))
    assert (a - b).abs().max() < 0.02


def test_percentiles_are_those_inside_of_the_body():
    """Air around the body, however much of it there is, does not count."""
    rng = np.random.default_rng(0)
    small, large = np.zeros((40, 40, 40), np.float32), np.zeros((120, 120, 40), np.float32)
    body = rng.uniform(300, 500, (30, 30, 40)).astype(np.float32)
    small[4:34, 4:34], large[40:70, 40:70] = body, body
    assert body_range(small) == pytest.approx(body_range(large), rel=0.01)
    assert body_range(small)[0] == pytest.approx(301, abs=3)


def test_ct_is_scaled_too():
    hu = torso_phantom(np.random.default_rng(0), SHAPE, SPACING_MM)[0].astype(np.float32)
    image = torch.zeros(4, *SHAPE)
    image[2] = torch.from_numpy(hu)
    done = normalized(image)
    assert 0 <= done[2].min() < done[2].max() <= 1
    assert done[2][torch.from_numpy((hu > 0) & (hu < 100))].std() > 0.01
    assert not done[[0, 1, 3]].any()


def test_image_of_one_bright_voxel_is_scaled():
    image = torch.zeros(1, 8, 8, 8)
    image[0, 3, 3, 3] = 5
    assert normalized(image)[0, 3, 3, 3] == 1


@pytest.mark.parametrize("there", [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0]])
def test_dropping_never_empties_an_image_and_reaches_every_subset(there):
    image = torch.tensor(there, dtype=torch.float32).reshape(4, 1, 1, 1).expand(4, 2, 2, 2).contiguous()
    drop = RandDropChannelsd("image", prob=0.5).set_random_state(0)
    seen = {tuple(present(drop({"image": image})["image"]).tolist()) for _ in range(400)}
    assert all(any(kept) for kept in seen)
    assert all(not k or t for kept in seen for k, t in zip(kept, there, strict=True))
    assert len(seen) == 2 ** sum(there) - 1
    assert torch.equal(present_tensor(image), torch.tensor(there, dtype=torch.bool)), "the input was changed"


def present_tensor(image):
    return torch.from_numpy(present(image))


def test_dropping_has_its_rate_and_follows_the_seed():
    image = torch.ones(4, 2, 2, 2)
    drop = RandDropChannelsd("image", prob=0.25).set_random_state(3)
    kept = np.array([present(drop({"image": image})["image"]) for _ in range(2000)])
    assert kept.mean() == pytest.approx(0.75, abs=0.02)
    again = RandDropChannelsd("image", prob=0.25).set_random_state(3)
    assert all((present(again({"image": image})["image"]) == row).all() for row in kept[:50])


def test_nothing_is_dropped_of_air_nor_with_probability_0():
    air = torch.zeros(4, 2, 2, 2)
    assert torch.equal(RandDropChannelsd("image", prob=0.5)({"image": air})["image"], air)
    whole = torch.ones(4, 2, 2, 2)
    assert all(RandDropChannelsd("image", prob=0.0)({"image": whole})["image"].all() for _ in range(20))


@pytest.mark.parametrize("prob", [-0.1, 1, 1.5])
def test_bad_probability_is_refused(prob):
    with pytest.raises(InputError, match=f"channel_drop_prob is {prob}: give a probability from 0 to below 1"):
        RandDropChannelsd("image", prob=prob)


def test_exchanged_channels_are_warned_of(dixon, caplog):
    given = {"image": dixon}
    assert WarnContrastsd("image")(given) == given
    before = caplog.text
    assert "exchanged" not in before
    WarnContrastsd("image")({"image": dixon[[0, 1, 3, 2]]})
    assert "p1: in-phase and opposed-phase are exchanged" in caplog.text


def test_absent_channels_are_not_taken_for_exchanged_ones(dixon, caplog):
    single = torch.zeros_like(dixon)
    single[2] = dixon[2]
    WarnContrastsd("image")({"image": single})
    assert "exchanged" not in caplog.text


def test_ignored_voxels_are_background_in_both():
    label, pred = torch.tensor([[1, 255, 0, 255]]), torch.tensor([[1, 2, 2, 0]])
    done = MaskIgnoredd(["pred", "label"])({"pred": pred, "label": label, "other": 1})
    assert done["label"].tolist() == [[1, 0, 0, 0]]
    assert done["pred"].tolist() == [[1, 0, 2, 0]]
    assert label[0, 1] == 255
    assert MaskIgnoredd(["pred", "label"])({"pred": pred})["pred"] is pred
    assert MaskIgnoredd(["pred", "label"])({"pred": pred, "label": "path"})["pred"] is pred
