import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scripts.transforms import LoadVolumed, RandLeftRightFlipd, RestoreLabelMapd, Spacingd, exchange_labels

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [5, -7, 9], degrees=True).as_matrix() @ np.diag([-2.0, 3.0, 4.0])
OBLIQUE[:3, 3] = 30, -20, 10
KIDNEYS = [(2, 3), (12, 13)]


def write(path, array, affine=OBLIQUE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


@pytest.fixture
def kidneys():
    label = torch.zeros(1, 10, 6, 6)
    label[:, 1:3, 2:4, 2:4] = 2
    label[:, 6:9, 1:3, 1:3] = 3
    label[:, 4, 4, 4] = 6
    return {"image": label * 10, "label": label}


# Reading


def test_volume_is_read_as_float_with_channel_affine_and_case(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    volume = LoadVolumed("image")({"image": write(tmp_path / "a.nii.gz", array), "case": "patient 1"})["image"]
    assert volume.shape == (1, 3, 4, 5)
    assert volume.dtype == torch.float32
    np.testing.assert_array_equal(volume[0], array)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert volume.meta["case"] == "patient 1"


def test_label_map_may_be_empty_but_an_image_may_not(tmp_path):
    path = write(tmp_path / "empty.nii.gz", np.zeros((3, 3, 3), np.uint8))
    assert LoadVolumed("label")({"label": path})["label"].sum() == 0
    with pytest.raises(ValueError, match=r"empty.nii.gz: is constant, every voxel is 0"):
        LoadVolumed("image")({"image": path})


def test_volume_of_one_slice_keeps_three_axes(tmp_path):
    path = write(tmp_path / "slice.nii.gz", np.arange(12, dtype=np.float32).reshape(3, 4, 1))
    assert LoadVolumed("image")({"image": path})["image"].shape == (1, 3, 4, 1)


SINGULAR = np.diag([1.0, 1, 1, 1])
SINGULAR[:3, 1] = SINGULAR[:3, 0]


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (np.random.rand(3, 3, 3, 2), np.eye(4), r"has shape \(3, 3, 3, 2\), not \(X, Y, Z\)"),
        (np.random.rand(3, 3), np.eye(4), r"has shape \(3, 3\), not \(X, Y, Z\)"),
        (np.random.rand(3, 3, 3), np.diag([0.001, 1, 1, 1]), r"voxel spacing \(0.001, 1.0, 1.0\) mm is outside"),
        (np.random.rand(3, 3, 3), SINGULAR, "its affine is singular"),
        (np.full((3, 3, 3), np.inf), np.eye(4), "holds NaN or infinite voxels"),
    ],
)
def test_unfit_volume_is_refused_with_its_path(tmp_path, array, affine, message):
    image = nib.Nifti1Image(array.astype(np.float32), None if affine is SINGULAR else affine)
    image.header.set_sform(affine, code=1)
    nib.save(image, tmp_path / "bad.nii")
    with pytest.raises(ValueError, match=rf"bad.nii: {message}"):
        LoadVolumed("image")({"image": str(tmp_path / "bad.nii")})


def test_text_file_with_the_name_of_a_volume_is_refused(tmp_path):
    (tmp_path / "text.nii.gz").write_text("not a volume")
    with pytest.raises(ValueError, match=r"text.nii.gz: cannot be read .*copy it again"):
        LoadVolumed("image")({"image": str(tmp_path / "text.nii.gz")})


# Spacing


def test_spacing_leaves_strings_beside_the_image_alone(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.random.rand(8, 8, 8).astype(np.float32))
    data = LoadVolumed("image")({"image": path, "image_path": path, "image_id": 7})
    out = Spacingd("image", pixdim=[4, 4, 4], mode="bilinear")(data)
    assert (out["image_path"], out["image_id"]) == (path, 7)
    np.testing.assert_allclose(out["image"].pixdim, [4, 4, 4], atol=1e-5)


# Mirroring


def test_flip_twice_is_identity(kidneys):
    flip = RandLeftRightFlipd(["image", "label"], pairs=KIDNEYS, prob=1.0)
    twice = flip(flip(kidneys))
    assert torch.equal(twice["image"], kidneys["image"])
    assert torch.equal(twice["label"], kidneys["label"])


def test_flip_once_exchanges_the_kidneys(kidneys):
    flipped = RandLeftRightFlipd(["image", "label"], pairs=KIDNEYS, prob=1.0)(kidneys)
    mirrored = torch.flip(kidneys["label"], [1])
    assert torch.equal(flipped["label"] == 2, mirrored == 3)
    assert torch.equal(flipped["label"] == 3, mirrored == 2)
    assert torch.equal(flipped["label"] == 6, mirrored == 6)
    assert torch.equal(flipped["image"], torch.flip(kidneys["image"], [1]))


def test_flip_keeps_the_input_and_obeys_prob_and_seed(kidneys):
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


def test_exchange_of_chained_pairs_does_not_mix():
    label = torch.tensor([1, 2, 3, 4])
    assert exchange_labels(label, [(1, 2), (3, 4)]).tolist() == [2, 1, 4, 3]


# Restoring


def pipeline():
    return Compose(
        [
            LoadVolumed("image"),
            Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd("image", pixdim=[2.5, 2.5, 2.5], mode="bilinear"),
            CropForegroundd("image", source_key="image"),
        ]
    )


def blob_image(path):
    array = np.zeros((20, 18, 16), np.float32)
    array[3:17, 2:15, 3:14] = 1 + ndimage.gaussian_filter(np.random.default_rng(0).random((14, 13, 11)), 2)
    return write(path, array)


def test_restored_label_map_equals_the_argmax_of_all_restored_logits(tmp_path):
    """The oracle holds every class at once; ours holds one at a time."""
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz")})
    logits = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(5, *data["image"].shape[1:])), (0, 2, 2, 2))
    data["pred"] = MetaTensor(torch.from_numpy(logits).float())
    ours = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)(data)["pred"]
    oracle = Invertd("pred", orig_keys="image", transform=preprocessing, nearest_interp=False)(data)["pred"]
    assert ours.shape == (1, 20, 18, 16)
    assert ours.dtype == torch.uint8
    np.testing.assert_array_equal(ours[0], oracle.argmax(0))
    np.testing.assert_allclose(ours.affine, OBLIQUE, atol=1e-5)


def test_outside_the_foreground_crop_everything_is_background(tmp_path):
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz")})
    logits = torch.full((3, *data["image"].shape[1:]), -9.0)
    logits[2] = 9.0
    data["pred"] = MetaTensor(logits)
    restored = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)(data)["pred"]
    assert restored[0, 10, 8, 8] == 2
    assert restored[0, 0].max() == 0


def test_restoring_keeps_the_name_of_the_case_through_a_data_loader(tmp_path):
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz"), "case": "p 7"})
    batch = list_data_collate([data])
    data = {"image": batch["image"][0], "pred": MetaTensor(torch.rand(2, *data["image"].shape[1:]))}
    restored = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)(data)["pred"]
    assert restored.meta["case"] == "p 7"


REGIONS = {"TC": [1, 3], "WT": [1, 2, 3], "ET": [3]}


def test_restored_regions_equal_those_of_all_restored_logits(tmp_path):
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz")})
    logits = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(3, *data["image"].shape[1:])), (0, 2, 2, 2))
    logits.sort(axis=0)
    data["pred"] = MetaTensor(torch.from_numpy(logits[[1, 2, 0]].copy()).float())  # ET < TC < WT: nested
    ours = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing, regions=REGIONS)(data)["pred"]
    oracle = Invertd("pred", orig_keys="image", transform=preprocessing, nearest_interp=False)(data)["pred"] > 0
    assert ours.shape == (1, 20, 18, 16)
    assert ours.dtype == torch.uint8
    assert set(ours.unique().tolist()) == {0, 1, 2, 3}
    for mask, class_ids in zip(oracle, REGIONS.values(), strict=True):
        np.testing.assert_array_equal(torch.isin(ours[0].as_tensor(), torch.tensor(class_ids)), mask)
    np.testing.assert_allclose(ours.affine, OBLIQUE, atol=1e-5)


def test_restoring_refuses_other_than_a_channel_per_region(tmp_path):
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz")})
    data["pred"] = MetaTensor(torch.zeros(4, *data["image"].shape[1:]))
    with pytest.raises(ValueError, match=r"4 channels for the regions \['TC', 'WT', 'ET'\]"):
        RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing, regions=REGIONS)(data)
