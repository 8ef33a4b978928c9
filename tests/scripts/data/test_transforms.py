import re
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd as MonaiSpacingd

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS, left_right_pairs
from scripts.data.case_checks import check_cases
from scripts.data.transforms import CheckLabeld, RandLeftRightFlipd, Spacingd, WarnImplausibled, with_label_check
from scripts.io.loading import LoadVolumed
from tests.scripts.io.volume_files import with_values, write_case, write_image, write_volume
from tools.torso import DEFAULT_SPACING_MM, torso_phantom

KIDNEYS = [(2, 3), (12, 13)]


@pytest.fixture
def kidneys():
    label = torch.zeros(1, 10, 6, 6)
    label[:, 1:3, 2:4, 2:4] = 2
    label[:, 6:9, 1:3, 1:3] = 3
    label[:, 4, 4, 4] = 6
    return {"image": label * 10, "label": label}


# Spacing


def test_strings_and_numbers_beside_the_image_are_kept(tmp_path):
    path = str(write_image(tmp_path / "a.nii.gz"))
    data = LoadVolumed("image")({"image": path, "image_path": path, "image_id": 7})
    out = Spacingd("image", pixdim=[4, 4, 4], mode="bilinear")(data)
    assert (out["image_path"], out["image_id"]) == (path, 7)
    np.testing.assert_allclose(out["image"].pixdim, [4, 4, 4], atol=1e-5)


def test_resampled_volume_is_that_of_monai(tmp_path):
    data = LoadVolumed("image")({"image": str(write_image(tmp_path / "a.nii.gz"))})
    options = {"keys": "image", "pixdim": [1, 1, 2], "mode": "bilinear"}
    ours, monai = (spacing(**options)(data)["image"] for spacing in (Spacingd, MonaiSpacingd))
    torch.testing.assert_close(ours.as_tensor(), monai.as_tensor())
    torch.testing.assert_close(ours.affine, monai.affine)


# Labels


def load_checked(item, **options):
    for transform in with_label_check([LoadVolumed(["image", "label"])], **(options or {"num_classes": 14})):
        item = transform(item)
    return item


def test_sound_label_is_not_changed(tmp_path):
    case = write_case(tmp_path)
    label = load_checked(case)["label"]
    assert torch.equal(label.as_tensor(), LoadVolumed("label")(case)["label"].as_tensor())


def test_check_follows_the_transform_that_reads():
    steps = with_label_check(["read", "orient", "resample"], num_classes=2)
    assert [steps[0], *steps[2:]] == ["read", "orient", "resample"]
    assert isinstance(steps[1], CheckLabeld)


@pytest.mark.parametrize(
    "spoil",
    [
        with_values(0.5, 3),
        with_values(np.nan, np.inf),
        with_values(-1),
        with_values(*range(99)),
        lambda path: write_volume(path, shape=(5, 6, 8)),
        lambda path: write_volume(path, value=99, affine=np.eye(4)),
    ],
)
def test_bad_label_is_refused_with_the_words_of_the_check_of_all_cases(spoil, tmp_path):
    case = write_case(tmp_path)
    spoil(Path(case["label"]))
    with pytest.raises(InputError) as before:
        check_cases([case], num_classes=14)
    problems = [line.removeprefix(f"{case['label']}: ") for line in str(before.value).splitlines()[1:]]
    with pytest.raises(InputError) as caught:
        load_checked(case)
    assert str(caught.value) == f"{case['label']}: {'; '.join(problems)}; correct the label or leave out the case"


def test_value_that_the_item_ignores_is_accepted(tmp_path):
    case = write_case(tmp_path)
    with_values(1, 255)(Path(case["label"]))
    with pytest.raises(InputError, match=r"label values 255 are outside 0\.\.13; correct"):
        load_checked(case)
    assert load_checked({**case, "ignored_label": 255})["label"].max() == 255


def test_label_may_hold_the_values_of_any_one_set(tmp_path):
    case = write_case(tmp_path)
    sets = {"label_sets": [[0, 1, 2, 3], [0, 1, 2, 4]]}
    for values in ((1, 3), (1, 4)):
        with_values(*values)(Path(case["label"]))
        load_checked(case, **sets)
    with_values(3, 4)(Path(case["label"]))
    with pytest.raises(InputError, match="label values 4 are outside 0, 1, 2, 3, and 3 are outside 0, 1, 2, 4"):
        load_checked(case, **sets)


def test_label_without_foreground_is_warned_about(tmp_path, caplog):
    case = write_case(tmp_path)
    write_volume(Path(case["label"]), value=0)
    load_checked(case)
    assert caplog.messages == [f"{case['label']}: the label is all background"]


@pytest.mark.parametrize("options", [{}, {"num_classes": 1}, {"label_sets": [[0, 1], [0]]}])
def test_check_without_classes_is_refused(options):
    with pytest.raises(InputError, match=re.escape("give num_classes, 2 or more, or label_sets")):
        CheckLabeld("label", **options)


# Mirroring


def test_flip_twice_is_identity(kidneys):
    flip = RandLeftRightFlipd(["image", "label"], pairs=KIDNEYS, prob=1.0)
    twice = flip(flip(kidneys))
    assert torch.equal(twice["image"], kidneys["image"])
    assert torch.equal(twice["label"], kidneys["label"])


def test_flip_swaps_the_kidneys(kidneys):
    flipped = RandLeftRightFlipd(["image", "label"], pairs=KIDNEYS, prob=1.0)(kidneys)
    mirrored = torch.flip(kidneys["label"], [1])
    assert torch.equal(flipped["label"] == 2, mirrored == 3)
    assert torch.equal(flipped["label"] == 3, mirrored == 2)
    assert torch.equal(flipped["label"] == 6, mirrored == 6)
    assert torch.equal(flipped["image"], torch.flip(kidneys["image"], [1]))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flip_finds_the_axis_that_runs_left_right(kidneys, axis):
    """Of volumes whose slices come first, for instance."""
    affine = torch.eye(4)
    affine[:3, :3] = torch.roll(torch.diag(torch.tensor([-2.0, 3, 4])), axis, dims=1)
    turned = {key: MetaTensor(value, affine=affine) for key, value in kidneys.items()}
    by_affine, by_axis = (
        RandLeftRightFlipd(["image", "label"], pairs=KIDNEYS, prob=1.0, spatial_axis=given)(turned)
        for given in (None, axis)
    )
    for key in ("image", "label"):
        assert torch.equal(by_affine[key], by_axis[key])


def test_flip_swaps_every_pair_of_the_72_organs_at_once():
    label = torch.arange(73).reshape(1, 73, 1, 1)
    flipped = RandLeftRightFlipd("label", pairs=left_right_pairs(ORGANS), prob=1.0)({"label": label})["label"]
    sides = {"left": "right", "right": "left"}
    for before, after in zip(label.flatten().tolist(), flipped.flip(1).flatten().tolist(), strict=True):
        if before == after:
            continue
        assert ORGANS[after].split("_")[-1] == sides[ORGANS[before].split("_")[-1]]
        assert ORGANS[after].rsplit("_", 1)[0] == ORGANS[before].rsplit("_", 1)[0]
    assert sorted(flipped.flatten().tolist()) == list(range(73))


def test_flip_keeps_the_input_and_depends_on_prob_and_seed(kidneys):
    before = kidneys["label"].clone()
    never = RandLeftRightFlipd("label", pairs=KIDNEYS, prob=0.0)(kidneys)
    assert torch.equal(never["label"], before)
    flip = RandLeftRightFlipd("label", pairs=KIDNEYS, prob=0.5)
    drawn = [
        [bool(flip.set_random_state(seed)(kidneys)["label"].ne(before).any()) for seed in range(20)] for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert 0 < sum(drawn[0]) < 20
    assert torch.equal(kidneys["label"], before)


def test_flip_keeps_metadata_and_dtype():
    label = MetaTensor(torch.ones(1, 4, 2, 2, dtype=torch.uint8), affine=torch.eye(4) * 2, meta={"case": "a"})
    flipped = RandLeftRightFlipd("label", pairs=KIDNEYS, prob=1.0)({"label": label})["label"]
    assert flipped.dtype == torch.uint8
    assert flipped.meta["case"] == "a"
    assert torch.equal(flipped.affine, label.affine)


def test_implausible_image_is_warned_of_and_not_changed(caplog):
    torso, affine = torso_phantom(np.random.default_rng(0))[0], np.diag([*DEFAULT_SPACING_MM, 1.0])
    image = MetaTensor(np.flip(torso, 0)[None].copy(), affine=affine, meta={"case": "p1"})
    given = {"image": image, "other": 3}
    assert WarnImplausibled("image", kind="MR")(given) == given
    assert "p1: intensities look like HU, expected MR" in caplog.text
    assert "p1: the liver seems to lie on the left" in caplog.text
    with pytest.raises(InputError, match="kind is 'CT': give one of HU, MR, normalized, unknown"):
        WarnImplausibled("image", kind="CT")
