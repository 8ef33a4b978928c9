import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.pretrain.contrasts import LoadContrastsd, read_contrasts, read_image, shown_channel
from scripts.ukbb.archive import CHANNELS
from tests.conftest import ROOT

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def write(path, channels, *, slope=None):
    """Write channels that differ; (X, Y, Z) if there is one."""
    voxels = np.random.default_rng(0).integers(1, 200, (5, 6, 7, channels)).astype(np.int16)
    image = nib.Nifti1Image(voxels[..., 0] if channels == 1 else voxels, AFFINE)
    if slope:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    return np.moveaxis(voxels, -1, 0)


def loaded(path, **item):
    return LoadContrastsd("image")({"image": str(path), **item})["image"]


def test_metadata_have_the_order_of_the_channels():
    metadata = json.loads((ROOT / "bundles/swin_bob_pretrain/configs/metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    assert tuple(image["channel_def"].values()) == CHANNELS
    assert image["num_channels"] == len(CHANNELS)


def test_four_channels_stay_where_they_are(tmp_path):
    voxels = write(tmp_path / "a.nii.gz", 4)
    image = loaded(tmp_path / "a.nii.gz")
    assert image.shape == (4, 5, 6, 7)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), voxels)
    np.testing.assert_array_equal(image.affine, AFFINE)


def test_names_beside_the_image_put_channels_in_place(tmp_path):
    voxels = write(tmp_path / "a.nii.gz", 4)
    (tmp_path / "a.json").write_text(json.dumps({"channels": CHANNELS[::-1], "case": "a"}))
    np.testing.assert_array_equal(loaded(tmp_path / "a.nii.gz").numpy(), voxels[::-1])


@pytest.mark.parametrize(("item", "channel"), [({}, 2), ({"contrast": "water"}, 1), ({"contrast": "opposed_phase"}, 3)])
def test_a_single_contrast_fills_one_channel_and_the_others_are_0(tmp_path, item, channel):
    voxels = write(tmp_path / "a.nii", 1)
    image = loaded(tmp_path / "a.nii", **item)
    np.testing.assert_array_equal(image[channel].numpy(), voxels[0])
    assert not image[[other for other in range(4) if other != channel]].any()


def test_setting_names_the_contrast_of_images_of_one_channel(tmp_path):
    write(tmp_path / "a.nii.gz", 1)
    image = LoadContrastsd("image", contrast="fat")({"image": str(tmp_path / "a.nii.gz")})["image"]
    assert image.flatten(1).any(dim=1).tolist() == [True, False, False, False]


def test_some_contrasts_are_put_in_place(tmp_path):
    voxels = write(tmp_path / "a.nii.gz", 2)
    image = loaded(tmp_path / "a.nii.gz", contrast="water,fat").numpy()
    np.testing.assert_array_equal(image[:2], voxels[::-1])
    assert not image[2:].any()


def test_volume_in_memory_and_label_map(tmp_path):
    memory = MetaTensor(torch.rand(3, 4, 5), affine=torch.eye(4), meta={"x": 1})
    write(tmp_path / "label.nii.gz", 1)
    done = LoadContrastsd(["image", "label"])({"image": memory, "label": str(tmp_path / "label.nii.gz"), "case": "c"})
    assert torch.equal(done["image"][2].as_tensor(), memory.as_tensor())
    assert done["image"].meta["x"] == 1
    assert done["image"].meta["case"] == "c"
    assert done["label"].shape == (1, 5, 6, 7)


def test_scaled_integers_are_read_as_intensities(tmp_path):
    voxels = write(tmp_path / "a.nii.gz", 4)
    nib.save(nib.Nifti1Image(voxels.transpose(1, 2, 3, 0) * 0.5, AFFINE, dtype=np.int16), tmp_path / "b.nii.gz")
    np.testing.assert_allclose(loaded(tmp_path / "b.nii.gz").numpy(), voxels * 0.5, atol=0.01)


def test_pictures_show_in_phase_or_else_the_first(tmp_path):
    voxels = write(tmp_path / "a.nii.gz", 4)
    np.testing.assert_array_equal(shown_channel(str(tmp_path / "a.nii.gz"))[0].numpy(), voxels[2])
    write(tmp_path / "b.nii.gz", 2)
    (tmp_path / "b.json").write_text('{"channels": ["water", "fat"]}')
    np.testing.assert_array_equal(
        shown_channel(str(tmp_path / "b.nii.gz"))[0].numpy(), read_contrasts(tmp_path / "b.nii.gz")[0].values()[..., 0]
    )


CONTRASTS = "fat, water, in_phase, opposed_phase"


@pytest.mark.parametrize(
    ("channels", "item", "beside", "message"),
    [
        (3, {}, None, "has 3 channels, and nothing names them; name them in contrast of its entry"),
        (5, {}, None, "has 5 channels, and nothing names them"),
        (4, {"contrast": "water"}, None, "has 4 channels, but 1 are named: water; correct them"),
        (1, {"contrast": "water,fat"}, None, "has 1 channels, but 2 are named: water, fat"),
        (1, {"contrast": "T1"}, None, f"contrast is 'T1': give one of {CONTRASTS}"),
        (2, {"contrast": "fat,fat"}, None, r"names a contrast twice \(fat, fat\)"),
        (2, {"contrast": "fat,"}, None, f"contrast is '': give one of {CONTRASTS}"),
        (2, {}, '{"channels": ["fat", "x\\n"]}', "contrast is "),
        (3, {}, '{"channels": ["fat", "water"]}', "has 3 channels, but 2 are named"),
        (2, {"contrast": "fat,water"}, '{"channels": ["water", "fat"]}', "names fat,water, but .* water,fat; "),
        (1, {}, '{"channels": 3}', r"a.json: does not say what the channels are"),
        (1, {}, '{"channels": [1]}', r"a.json: does not say what the channels are"),
        (1, {}, "{", r"a.json: does not say what the channels are"),
    ],
)
def test_channels_that_nobody_can_place_are_refused(tmp_path, channels, item, beside, message):
    write(tmp_path / "a.nii.gz", channels)
    if beside:
        (tmp_path / "a.json").write_text(beside)
    for read in (lambda: loaded(tmp_path / "a.nii.gz", **item), lambda: read_image(item, str(tmp_path / "a.nii.gz"))):
        with pytest.raises(InputError, match=message):
            read()


def test_json_without_channels_says_nothing(tmp_path):
    write(tmp_path / "a.nii.gz", 1)
    for text in ("{}", "[1]", '{"EchoTime": 3}'):
        (tmp_path / "a.json").write_text(text)
        assert read_contrasts(tmp_path / "a.nii.gz")[1] == ("in_phase",)


def test_constant_channel_is_refused_and_zeros_are_absent(tmp_path):
    voxels = np.random.default_rng(0).random((4, 4, 4, 4)).astype(np.float32)
    for value in (0, 7):
        voxels[..., 1] = value
        nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / f"{value}.nii.gz")
    assert not loaded(tmp_path / "0.nii.gz")[1].any()
    with pytest.raises(InputError, match=r"7.nii.gz: its channel water is constant"):
        loaded(tmp_path / "7.nii.gz")


def test_unknown_setting_is_refused():
    with pytest.raises(InputError, match=f"the setting: contrast is 'T1': give one of {CONTRASTS}"):
        LoadContrastsd("image", contrast="T1")


def test_five_dimensions_are_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.random.rand(3, 3, 3, 1, 4).astype(np.float32), AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"has shape \(3, 3, 3, 1, 4\), need \(X, Y, Z\)"):
        loaded(tmp_path / "a.nii.gz")
