import logging
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scripts.inputs import list_cases
from scripts.sequence_loading import LoadSequencesd
from scripts.sequences import find_cases, kind_of
from tests.conftest import SHARED_DATA

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [5, -7, 9], degrees=True).as_matrix() @ np.diag([-1.0, 1.5, 2.0])
OBLIQUE[:3, 3] = 30, -20, 10


def ball(points_mm, centre_mm):
    """A smooth bump in world coordinates, which any grid samples alike."""
    distance_mm = np.linalg.norm(points_mm - centre_mm, axis=-1)
    return np.where(distance_mm < 9, 100 * np.cos(distance_mm / 9 * np.pi / 2) ** 2, 0)


def sampled(shape, affine, factor):
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    centre_mm = nib.affines.apply_affine(OBLIQUE, [12, 11, 9])
    return (factor * ball(nib.affines.apply_affine(affine, indices), centre_mm)).astype(np.float32)


def write_case(folder, *, grids=None, names=None):
    """Write four sequences that show the same ball, of brightness 1 to 4."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for factor, kind in enumerate(SEQUENCES, start=1):
        shape, affine = (grids or {}).get(kind, ((25, 23, 19), OBLIQUE))
        path = folder / (names or {}).get(kind, f"p1-{kind}.nii.gz")
        nib.save(nib.Nifti1Image(sampled(shape, affine, factor), affine), path)
        paths.append(str(path))
    return paths


def load(paths, **options):
    return LoadSequencesd("image", **options)({"image": paths, "case": "p1"})["image"]


def said(caplog):
    return [record.message for record in caplog.records if record.name.startswith("scripts")]


# Names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BraTS-GLI-00000-000-t1n.nii.gz", "t1n"),
        ("BraTS2021_00000_t1.nii.gz", "t1n"),
        ("BraTS2021_00000_t1ce.nii", "t1c"),
        ("BraTS20_Training_001_T2.nii", "t2w"),
        ("flair.nii.gz", "t2f"),
        ("x_seg.nii.gz", "seg"),
        ("xt1.nii.gz", None),
        ("x-t1n.mha", None),
        ("._x-t1n.nii.gz", None),
    ],
)
def test_file_name_tells_the_sequence(name, kind):
    assert kind_of(f"folder/{name}") == kind


def test_cases_are_found_in_a_folder_of_folders_in_either_layout_and_flat(tmp_path):
    write_case(tmp_path / "a" / "BraTS-GLI-00001-000")
    old = dict(zip(SEQUENCES, ("old_t1.nii", "old_t1ce.nii", "old_t2.nii", "old_flair.nii"), strict=True))
    write_case(tmp_path / "b", names=old)
    write_case(tmp_path / "c", names={kind: f"{kind}.nii.gz" for kind in SEQUENCES})
    (tmp_path / "b" / "old_seg.nii").touch()
    (tmp_path / "b" / "notes.nii").touch()
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["p1", "old", "c"]
    assert cases[1].images == [str(tmp_path / "b" / name) for name in old.values()]
    assert cases[1].labels == [str(tmp_path / "b" / "old_seg.nii")]


def test_input_is_a_case_or_a_folder_of_cases(tmp_path):
    paths = write_case(tmp_path / "x" / "p1")
    write_case(tmp_path / "y" / "p1")
    (tmp_path / "y" / "p1" / "p1-seg.nii.gz").touch()
    one = list_cases(tmp_path / "x" / "p1", images_per_case=4)
    assert one == [{"image": paths, "case": "p1"}]
    both = list_cases(tmp_path, images_per_case=4)
    assert [case["case"] for case in both] == ["x_p1_p1", "y_p1_p1"]
    assert both[1]["label"] == str(tmp_path / "y" / "p1" / "p1-seg.nii.gz")


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.touch()])
def test_input_without_sequences_is_refused(tmp_path, make):
    make(tmp_path / "in")
    with pytest.raises(ValueError, match=r"in: holds no such sequences; give --input a case's folder with <case>-t1n"):
        list_cases(tmp_path / "in", images_per_case=4)


# Loading


def test_four_files_become_the_channels_of_one_image(tmp_path):
    paths = write_case(tmp_path)
    image = load(paths)
    assert image.shape == (4, 25, 23, 19)
    assert image.dtype == torch.float32
    for channel, path in zip(image, paths, strict=True):
        np.testing.assert_array_equal(channel, nib.load(path).get_fdata())
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert image.meta["filename_or_obj"] == paths[1]
    assert image.meta["case"] == "p1"


def test_label_beside_the_sequences_is_read_as_it_is(tmp_path):
    paths = write_case(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros((25, 23, 19), np.uint8), OBLIQUE), tmp_path / "p1-seg.nii.gz")
    out = LoadSequencesd(["image", "label"])({"image": paths, "label": str(tmp_path / "p1-seg.nii.gz")})
    assert out["label"].shape == (1, 25, 23, 19)
    assert out["label"].max() == 0


def test_files_whose_names_do_not_tell_are_taken_in_their_order(tmp_path):
    paths = write_case(tmp_path, names={kind: f"{n}.nii.gz" for n, kind in enumerate(SEQUENCES)})
    maxima = load(paths).amax(dim=(1, 2, 3))
    np.testing.assert_allclose(maxima / maxima[0], [1, 2, 3, 4], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: [p[1], p[0], p[2], p[3]],
            "p1-t1c.nii.gz: is t1c by its name, where t1n belongs: give t1n, t1c, t2w",
        ),
        (lambda p: p[:3], ": t2f missing beside p1-t1n.nii.gz: give t1n, t1c, t2w, t2f."),
        (lambda p: [*p[:3], p[0]], ": t1n is there 2 times (p1-t1n.nii.gz, p1-t1n.nii.gz): keep one."),
        (lambda p: [*p, p[0].replace("t1n", "dwi")], ": 5 images: give t1n, t1c, t2w, t2f, in this order."),
        (lambda p: [p[0].replace("p1-t1n", "none"), *p[1:]], "none.nii.gz: cannot be read"),
    ],
)
def test_other_than_four_sequences_in_order_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(change(write_case(tmp_path)))


def test_constant_sequence_is_refused_by_its_name(tmp_path):
    paths = write_case(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros((25, 23, 19), np.float32), OBLIQUE), paths[2])
    with pytest.raises(ValueError, match=r"p1-t2w.nii.gz: is constant, every voxel is 0"):
        load(paths)


def test_one_file_is_no_image_of_four_sequences(tmp_path):
    path = write_case(tmp_path)[0]
    with pytest.raises(ValueError, match=r"p1-t1n.nii.gz: is one file: list the four of t1n, t1c, t2w, t2f, in this"):
        load(path)


# Grids

FINER = OBLIQUE @ np.diag([0.8, 0.9, 0.7, 1.0])
FINER[:3, 3] += 2, -3, 1
OTHER_GRIDS = {"t2w": ((30, 28, 26), FINER)}


def test_sequences_on_different_grids_are_refused_with_what_differs_and_how_to_mend_it(tmp_path):
    with pytest.raises(ValueError, match=r"p1-t1c.nii.gz: not all sequences lie on its grid: t2w has shape") as caught:
        load(write_case(tmp_path, grids=OTHER_GRIDS))
    text = str(caught.value)
    assert "t2w has shape 30 x 28 x 26 instead of 25 x 23 x 19, spacing 0.8 x 1.35 x 1.4 instead of 1 x 1.5 x 2" in text
    assert "t1n" not in text
    assert "t2f" not in text
    assert "co-registered, of 1 mm and skull-stripped" in text
    assert text.endswith(
        "--resample true, which puts all on t1c's grid by their affines and neither registers nor strips."
    )


def test_resampling_puts_what_lies_in_one_place_in_one_place(tmp_path, caplog):
    paths = write_case(tmp_path, grids=OTHER_GRIDS)
    with caplog.at_level(logging.WARNING):
        image = load(paths, resample="true")
    assert image.shape == (4, 25, 23, 19)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert image.meta["filename_or_obj"] == paths[1]
    # linear interpolation of a smooth ball of 100 on voxels of about 1 mm
    np.testing.assert_allclose(image[2], sampled((25, 23, 19), OBLIQUE, 3), atol=8)
    assert image[2].argmax() == image[1].argmax()
    assert said(caplog) == [
        f"{paths[1]}: all sequences resampled to its grid by their affines; nothing was registered or skull-stripped"
    ]


def test_resampling_agrees_with_scipy_on_a_coarser_grid(tmp_path):
    coarse = OBLIQUE @ np.diag([1.7, 1.3, 1.9, 1.0])
    paths = write_case(tmp_path, grids={"t2f": ((14, 17, 10), coarse)})
    image = load(paths, resample=True)
    to_coarse = np.linalg.inv(coarse) @ OBLIQUE
    stored = nib.load(paths[3]).get_fdata()
    oracle = ndimage.affine_transform(
        stored, to_coarse[:3, :3], to_coarse[:3, 3], (25, 23, 19), order=1, mode="grid-constant", cval=0
    )
    np.testing.assert_allclose(image[3], oracle, atol=1e-2)


def test_sequences_on_the_grid_already_stay_as_they_are(tmp_path):
    paths = write_case(tmp_path, grids=OTHER_GRIDS)
    image = load(paths, resample=True)
    for channel in (0, 1, 3):
        np.testing.assert_array_equal(image[channel], nib.load(paths[channel]).get_fdata())


def test_head_with_its_skull_is_warned_about(tmp_path, caplog):
    paths = write_case(tmp_path)
    for path in paths:
        stored = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj) + 5, stored.affine), path)
    with caplog.at_level(logging.WARNING):
        load(paths)
    assert said(caplog) == [f"{paths[1]}: few voxels are 0 (t1n 0%, t1c 0%, t2w 0%, t2f 0%): strip the skull first"]


@pytest.fixture
def raw_case():
    folder = SHARED_DATA / "brain_mri"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return list_cases(folder, images_per_case=4)[0]["image"]


def test_raw_scans_are_refused_and_said_why(raw_case):
    with pytest.raises(ValueError, match="not all sequences lie on its grid") as caught:
        load(raw_case)
    text = str(caught.value)
    assert "t2w has shape 224 x 256 x 26 instead of 256 x 224 x 26, turned by 1" in text
    assert "t2f has shape 208 x 256 x 26 instead of 256 x 224 x 26, turned by 1" in text
    assert "t1n has" not in text


def test_raw_scans_are_resampled_to_the_grid_of_t1c(raw_case):
    image = load(raw_case, resample=True)
    assert image.shape == (4, 256, 224, 26)
    np.testing.assert_allclose(image.affine, nib.load(raw_case[1]).affine, atol=1e-4)
    assert all((channel > 0).float().mean() > 0.5 for channel in image)
