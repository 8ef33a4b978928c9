import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scripts.brats.regions import BRATS_REGIONS, nested_label_map
from scripts.common.errors import InputError
from scripts.data.transforms import Spacingd
from scripts.inference.restore import RestoreLabelMapd
from scripts.io.loading import LoadVolumed

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [5, -7, 9], degrees=True).as_matrix() @ np.diag([-2.0, 3.0, 4.0])
OBLIQUE[:3, 3] = 30, -20, 10


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
    nib.save(nib.Nifti1Image(array, OBLIQUE), path)
    return str(path)


def test_restored_label_map_equals_the_argmax_of_all_restored_logits(tmp_path):
    """The reference holds the logits of all classes at once; ours holds one class at a time."""
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


def test_voxels_outside_the_foreground_crop_are_background(tmp_path):
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz")})
    logits = torch.full((3, *data["image"].shape[1:]), -9.0)
    logits[2] = 9.0
    data["pred"] = MetaTensor(logits)
    restored = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)(data)["pred"]
    assert restored[0, 10, 8, 8] == 2
    assert restored[0, 0].max() == 0


def test_case_name_is_kept_through_a_data_loader(tmp_path):
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz"), "case": "p 7"})
    batch = list_data_collate([data])
    data = {"image": batch["image"][0], "pred": MetaTensor(torch.rand(2, *data["image"].shape[1:]))}
    restored = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)(data)["pred"]
    assert restored.meta["case"] == "p 7"


def test_restored_regions_equal_those_of_all_restored_logits(tmp_path):
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz")})
    logits = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(3, *data["image"].shape[1:])), (0, 2, 2, 2))
    logits.sort(axis=0)
    data["pred"] = MetaTensor(torch.from_numpy(logits[[1, 2, 0]].copy()).float())  # ET < TC < WT: nested
    ours = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing, to_label_map=nested_label_map)(data)[
        "pred"
    ]
    oracle = Invertd("pred", orig_keys="image", transform=preprocessing, nearest_interp=False)(data)["pred"] > 0
    assert ours.shape == (1, 20, 18, 16)
    assert ours.dtype == torch.uint8
    assert set(ours.unique().tolist()) == {0, 1, 2, 3}
    for mask, class_ids in zip(oracle, BRATS_REGIONS.values(), strict=True):
        np.testing.assert_array_equal(torch.isin(ours[0].as_tensor(), torch.tensor(class_ids)), mask)
    np.testing.assert_allclose(ours.affine, OBLIQUE, atol=1e-5)


def test_error_of_the_function_that_makes_the_label_map_is_raised(tmp_path):
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz")})
    data["pred"] = MetaTensor(torch.zeros(4, *data["image"].shape[1:]))
    with pytest.raises(InputError, match=r"4 channels for the regions \['TC', 'WT', 'ET'\]"):
        RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing, to_label_map=nested_label_map)(data)


def test_sheared_volume_is_restored_class_by_class_which_is_logged_once(caplog):
    affine = np.eye(4)
    affine[1, 2] = 0.3  # a tilted gantry
    preprocessing = Spacingd("image", pixdim=(2, 2, 2))
    image = MetaTensor(torch.rand(1, 12, 11, 10), affine=torch.from_numpy(affine))
    data = preprocessing({"image": image})
    data["pred"] = MetaTensor(torch.randn(4, *data["image"].shape[1:]))
    restore = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)
    restore(data)
    ours = restore(data)["pred"]
    oracle = Invertd("pred", orig_keys="image", transform=preprocessing, nearest_interp=False)(data)["pred"]
    np.testing.assert_array_equal(ours[0], oracle.argmax(0))
    messages = [message for message in caplog.messages if "one class at a time" in message]
    assert len(messages) == 1
    assert "SpatialResample its axes are turned or sheared by" in messages[0]


@pytest.mark.parametrize("shear", [0, 0.3])
def test_chosen_classes_are_those_of_all_classes_and_others_background(shear):
    affine = np.eye(4)
    affine[1, 2] = shear
    preprocessing = Spacingd("image", pixdim=(2, 2, 2))
    image = MetaTensor(torch.rand(1, 12, 11, 10), affine=torch.from_numpy(affine))
    data = preprocessing({"image": image})
    data["pred"] = MetaTensor(torch.randn(6, *data["image"].shape[1:]))
    options = {"orig_keys": "image", "transform": preprocessing}
    everything = RestoreLabelMapd("pred", **options)(data)["pred"].as_tensor()
    chosen = RestoreLabelMapd("pred", roi_subset=[2, 5], **options)(data)["pred"].as_tensor()
    expected = torch.where(torch.isin(everything, torch.tensor([2, 5])), everything, 0)
    assert chosen.dtype == torch.uint8
    np.testing.assert_array_equal(chosen, expected)


def test_metadata_are_those_of_monai(tmp_path):
    preprocessing = pipeline()
    data = preprocessing({"image": blob_image(tmp_path / "a.nii.gz"), "case": "p"})
    data["pred"] = MetaTensor(torch.rand(2, *data["image"].shape[1:]))
    restore = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)
    ours, theirs = restore(data)["pred"].meta, restore.one_channel_at_a_time(data).meta
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(ours["affine"], theirs["affine"], atol=1e-6)
    assert ours["filename_or_obj"] == theirs["filename_or_obj"]
