import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from scripts.common.errors import InputError
from scripts.io import pictures
from scripts.io.pictures import LoadPictureOrVolumed, SavePictureOrLabelMapd, read_image, read_picture

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


@pytest.fixture(autouse=True)
def _nothing_said_before(monkeypatch):
    monkeypatch.setattr(pictures, "_said", set())


def picture(path, values=PIXELS, **options):
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".PNG"])
def test_rows_and_columns_become_a_volume_of_one_slice(tmp_path, suffix):
    path = picture(tmp_path / f"a{suffix}")
    image = LoadPictureOrVolumed("image")({"image": str(path), "case": "p1"})["image"]
    assert image.shape == (1, 6, 4, 1)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image[0, ..., 0].T, PIXELS)
    assert image.meta["case"] == "p1"


def test_slice_looks_as_the_picture_to_a_radiologist(tmp_path):
    from scripts.preview.rendering import extract_slice, to_ras

    volume = read_picture(picture(tmp_path / "a.png"))
    np.testing.assert_array_equal(extract_slice(to_ras(volume.stored, volume.affine), "axial", 0), PIXELS)


def test_sixteen_bits_are_kept(tmp_path):
    values = np.array([[0, 300], [40_000, 65_535]], dtype=np.uint16)
    np.testing.assert_array_equal(read_picture(picture(tmp_path / "a.png", values)).values()[..., 0].T, values)


def test_colours_become_gray_and_the_log_says_so_once(tmp_path, caplog):
    colours = np.stack([PIXELS, PIXELS, PIXELS], axis=-1)
    paths = [picture(tmp_path / name, colours) for name in ("a.png", "b.png")]
    np.testing.assert_allclose(read_picture(paths[0]).stored[..., 0].T, PIXELS, atol=1)
    read_picture(paths[1])
    assert caplog.text.count("colours are converted to gray") == 1


def test_transparency_is_dropped(tmp_path):
    values = np.stack([PIXELS, np.zeros_like(PIXELS)], axis=-1)
    path = tmp_path / "a.png"
    Image.fromarray(values, mode="LA").save(path)
    np.testing.assert_array_equal(read_picture(path).stored[..., 0].T, PIXELS)


def test_flat_nifti_is_a_volume_of_one_slice_and_other_volumes_stay(tmp_path):
    for name, shape in {"flat": (5, 4), "thick": (5, 4, 3)}.items():
        values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / f"{name}.nii.gz")
    assert read_image(tmp_path / "flat.nii.gz").shape == (1, 5, 4, 1)
    assert read_image(tmp_path / "thick.nii.gz").shape == (1, 5, 4, 3)


@pytest.mark.parametrize("binary", [True, False])
def test_label_of_0_and_255_is_taken_as_0_and_1_with_a_warning(tmp_path, caplog, binary):
    values = np.where(PIXELS > 100, 255, 0).astype(np.uint8)
    values[0, 0] = 0 if binary else 3
    label = LoadPictureOrVolumed("mask")({"mask": str(picture(tmp_path / "m.png", values))})["mask"]
    assert label.unique().tolist() == ([0, 1] if binary else [0, 3, 255])
    assert ("holds 0 and 255 alone, taken as 0 and 1" in caplog.text) == binary


def test_label_of_nifti_with_0_and_255_is_binary_too(tmp_path):
    nib.save(nib.Nifti1Image(np.where(PIXELS > 100, 255, 0).astype(np.uint8), np.eye(4)), tmp_path / "m.nii.gz")
    label = LoadPictureOrVolumed("mask")({"mask": str(tmp_path / "m.nii.gz")})["mask"]
    assert label.unique().tolist() == [0, 1]


def write_truncated(path):
    picture(path, np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:900])


def write_frames(path):
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


BAD = {
    "no picture": (
        "a.png",
        lambda path: path.write_text("no"),
        False,
        "not a picture that can be read; save it as PNG",
    ),
    "truncated": ("a.png", write_truncated, False, "cannot be read whole"),
    "missing": ("a.png", lambda path: None, False, "no such file; correct the path"),
    "frames": ("a.tif", write_frames, False, "has 2 frames; give one"),
    "JPEG label": (
        "a.jpg",
        picture,
        True,
        "JPEG changes the values of pixels, which a label map needs; save it as PNG",
    ),
    "colour label": (
        "a.png",
        lambda path: picture(path, np.stack([PIXELS, PIXELS, PIXELS // 2], axis=-1)),
        True,
        "is a label map of colours; save one with a class id per pixel",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_picture_is_refused_by_name(tmp_path, kind):
    name, write, is_label, message = BAD[kind]
    write(tmp_path / name)
    with pytest.raises(InputError, match=f"^{tmp_path / name}: {message}"):
        read_picture(tmp_path / name, is_label=is_label)


@pytest.mark.parametrize("highest", [3, 300])
def test_label_map_of_a_picture_is_a_png_of_its_size_with_the_class_ids(tmp_path, highest):
    meta = {"filename_or_obj": "in/a.png", "case": "p1"}
    label = torch.zeros(1, 6, 4, 1)
    label[0, 2, 3] = 1
    save = SavePictureOrLabelMapd("pred", output_dir=tmp_path, renumber={1: highest})
    save({"pred": MetaTensor(label, affine=torch.eye(4), meta=meta)})
    saved = np.asarray(Image.open(tmp_path / "p1_seg.png"))
    assert saved.shape == (4, 6)
    assert saved[3, 2] == highest
    assert saved.sum() == highest
    np.testing.assert_array_equal(read_picture(tmp_path / "p1_seg.png", is_label=True).stored[..., 0].T, saved)


def test_label_map_of_a_volume_is_nifti(tmp_path):
    meta = {"filename_or_obj": "in/a.nii.gz", "case": "p1"}
    label = MetaTensor(torch.ones(1, 2, 3, 4), affine=torch.eye(4), meta=meta)
    SavePictureOrLabelMapd("pred", output_dir=tmp_path)({"pred": label})
    assert [path.name for path in tmp_path.iterdir()] == ["p1_seg.nii.gz"]


def test_transform_is_silent_about_gray_pictures(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read_picture(picture(tmp_path / "a.png"))
    assert caplog.text == ""


def test_label_of_0_and_255_can_be_kept(tmp_path, caplog):
    values = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "label.png")
    nib.save(nib.Nifti1Image(values[..., None], np.eye(4)), tmp_path / "label.nii.gz")
    for path in tmp_path.iterdir():
        label = LoadPictureOrVolumed("label", keep_255=True)({"label": str(path)})["label"]
        assert label.unique().tolist() == [0, 255]
    assert caplog.text == ""
