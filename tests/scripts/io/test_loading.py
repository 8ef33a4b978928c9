import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import LoadImage, Orientation

from scripts.common.errors import InputError
from scripts.io.loading import LoadVolumed
from tests.conftest import ROOT, SHARED_DATA
from tests.scripts.io.volume_files import BAD_FILES, BAD_IMAGES, OBLIQUE, write_array, write_image, write_volume


def test_volume_is_read_as_float_with_channel_affine_and_case(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = str(write_array(tmp_path / "a.nii.gz", array))
    volume = LoadVolumed("image")({"image": path, "case": "patient 1"})["image"]
    assert type(volume) is MetaTensor
    assert volume.shape == (1, 3, 4, 5)
    assert volume.dtype == torch.float32
    np.testing.assert_array_equal(volume[0], array)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert volume.meta["case"] == "patient 1"
    assert volume.meta["filename_or_obj"] == path


def test_volume_and_metadata_equal_those_of_monai(tmp_path):
    path = str(write_image(tmp_path / "a.nii.gz"))
    ours = LoadVolumed("image")({"image": path})["image"]
    monai = LoadImage(reader="NibabelReader", ensure_channel_first=True)(path)
    torch.testing.assert_close(ours.as_tensor(), monai.as_tensor())
    torch.testing.assert_close(ours.affine, monai.affine)
    for key in ("filename_or_obj", "space"):
        assert str(ours.meta[key]) == str(monai.meta[key])
    assert list(ours.meta["spatial_shape"]) == list(monai.meta["spatial_shape"])
    torch.testing.assert_close(ours.meta["original_affine"], torch.as_tensor(monai.meta["original_affine"]))


def test_volumes_are_collated_to_batches(tmp_path):
    path = str(write_image(tmp_path / "a.nii.gz"))
    load = LoadVolumed("image")
    batch = list_data_collate([load({"image": path, "case": case}) for case in ("a", "b")])
    assert batch["image"].shape == (2, 1, 5, 6, 7)
    assert [image.meta["case"] for image in batch["image"]] == ["a", "b"]


def test_label_map_may_be_empty_but_an_image_may_not(tmp_path):
    path = str(write_volume(tmp_path / "empty.nii.gz"))
    assert LoadVolumed("label")({"label": path})["label"].sum() == 0
    with pytest.raises(InputError, match=r"empty.nii.gz: is constant, every voxel is 0"):
        LoadVolumed("image")({"image": path})


def test_keys_named_as_images_are_checked_as_images(tmp_path):
    path = str(write_volume(tmp_path / "empty.nii.gz"))
    with pytest.raises(InputError, match="is constant"):
        LoadVolumed("flair", image_keys=["flair"])({"flair": path})


@pytest.mark.parametrize("message", {**BAD_FILES, **BAD_IMAGES})
def test_bad_image_is_refused_with_its_path(tmp_path, message):
    path = write_image(tmp_path / "ct.nii.gz")
    {**BAD_FILES, **BAD_IMAGES}[message](path)
    with pytest.raises(InputError) as error:
        LoadVolumed("image")({"image": str(path)})
    assert str(error.value).startswith(f"{path}: {message}")


def test_missing_key_is_refused_unless_allowed(tmp_path):
    data = {"image": str(write_image(tmp_path / "a.nii.gz"))}
    assert set(LoadVolumed(["image", "label"], allow_missing_keys=True)(data)) == {"image"}
    with pytest.raises(KeyError, match="label"):
        LoadVolumed(["image", "label"])(data)


def test_the_case_itself_is_not_changed(tmp_path):
    path = str(write_image(tmp_path / "a.nii.gz"))
    data = {"image": path, "note": 7}
    assert LoadVolumed("image")(data)["note"] == 7
    assert data == {"image": path, "note": 7}


def test_folder_is_read_as_a_dicom_series():
    """MONAI's reader orders the slices by their numbers, which here run from head to feet."""
    folder = SHARED_DATA / "ct_dicom"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    to_ras = Orientation("RAS", labels=None)
    image = to_ras(LoadVolumed("image")({"image": str(folder)})["image"])
    monai = to_ras(LoadImage(reader="PydicomReader", ensure_channel_first=True)(str(folder)))
    assert image.shape == (1, 512, 512, 20)
    torch.testing.assert_close(image.as_tensor(), monai.as_tensor())
    torch.testing.assert_close(image.affine, monai.affine)


def test_importing_costs_no_more_than_monai():
    """MONAI 1.6.1 imports pandas, ignite and matplotlib by itself."""
    code = """
import sys, nibabel, monai.config, monai.data, monai.transforms
before = set(sys.modules)
import scripts.io.loading, scripts.io.writing
print({name.partition(".")[0] for name in set(sys.modules) - before})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "{'scripts'}\n"


@pytest.mark.parametrize("channel", [False, True])
def test_volume_in_memory_stays_with_its_affine(channel):
    """The MONAI Deploy App SDK gives volumes of (X, Y, Z)."""
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.arange(24, dtype=torch.int16).reshape(2, 3, 4), affine=affine)
    loaded = LoadVolumed("image")({"image": volume[None] if channel else volume})["image"]
    assert (loaded.shape, loaded.dtype) == ((1, 2, 3, 4), torch.float32)
    torch.testing.assert_close(loaded.affine, affine)
