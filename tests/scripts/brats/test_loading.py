import logging
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.brats.inputs import find_sequences
from scripts.brats.loading import LoadSequencesd
from scripts.common.errors import InputError
from scripts.data.inputs import list_cases
from tests.conftest import SHARED_DATA
from tests.scripts.brats.sequence_files import OBLIQUE, OTHER_GRIDS, SEQUENCES, SHAPE, sampled, write_case


def load(paths, **options):
    return LoadSequencesd("image", **options)({"image": paths, "case": "p1"})["image"]


def logged(caplog):
    return [record.message for record in caplog.records if record.name.startswith("scripts")]


def test_four_files_become_the_channels_of_one_image(tmp_path):
    paths = write_case(tmp_path)
    image = load(paths)
    assert image.shape == (4, *SHAPE)
    assert image.dtype == torch.float32
    for channel, path in zip(image, paths, strict=True):
        np.testing.assert_array_equal(channel, nib.load(path).get_fdata())
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert image.meta["filename_or_obj"] == paths[1]
    assert image.meta["case"] == "p1"


def test_label_beside_the_sequences_is_read_as_it_is(tmp_path):
    paths = write_case(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), OBLIQUE), tmp_path / "p1-seg.nii.gz")
    out = LoadSequencesd(["image", "label"])({"image": paths, "label": str(tmp_path / "p1-seg.nii.gz")})
    assert out["label"].shape == (1, *SHAPE)
    assert out["label"].max() == 0


def test_files_without_a_known_name_are_taken_in_their_order(tmp_path):
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
        (lambda p: [*p[:3], p[0]], ": 2 files for t1n (p1-t1n.nii.gz, p1-t1n.nii.gz): keep one."),
        (lambda p: [*p, p[0].replace("t1n", "dwi")], ": 5 images: give t1n, t1c, t2w, t2f, in this order."),
        (lambda p: [p[0].replace("p1-t1n", "none"), *p[1:]], "none.nii.gz: no such file"),
    ],
)
def test_other_than_four_sequences_in_order_is_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load(change(write_case(tmp_path)))


def test_constant_sequence_is_named(tmp_path):
    paths = write_case(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), OBLIQUE), paths[2])
    with pytest.raises(InputError, match=r"p1-t2w.nii.gz: is constant, every voxel is 0"):
        load(paths)


def test_two_sequences_of_the_same_voxels_are_refused(tmp_path):
    paths = write_case(tmp_path)
    shutil.copy(paths[0], paths[3])
    message = f"{paths[0]}: holds the same voxels as {paths[3]}: give t1n, t1c, t2w, t2f, each once."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load(paths)


@pytest.mark.parametrize("given", ["folder", "t2f"])
def test_case_is_read_from_its_folder_or_one_of_its_sequences(tmp_path, given):
    paths = write_case(tmp_path)
    torch.testing.assert_close(load(str(tmp_path) if given == "folder" else paths[3]), load(paths))


def test_folder_of_two_cases_is_not_an_image(tmp_path):
    for name in ("p1", "p2"):
        write_case(tmp_path / name)
    with pytest.raises(InputError, match=r": holds 2 cases \(.*\); give the folder of one\.$"):
        load(str(tmp_path))


def test_path_that_does_not_exist_is_no_image(tmp_path):
    with pytest.raises(InputError, match=r"no/p1-t1n.nii.gz: no such file or folder; give a case's folder or one of"):
        load(str(tmp_path / "no" / "p1-t1n.nii.gz"))


def test_file_without_the_name_of_a_sequence_is_no_image(tmp_path):
    (tmp_path / "ct.nii.gz").touch()
    with pytest.raises(InputError, match=r"ct.nii.gz: no sequences found; give the folder of <case>-t1n"):
        load(str(tmp_path / "ct.nii.gz"))


# Grids


def test_sequences_on_different_grids_are_refused_with_the_difference_and_the_fix(tmp_path):
    with pytest.raises(InputError, match=r"p1-t1c.nii.gz: not all sequences lie on its grid: t2w has shape") as caught:
        load(write_case(tmp_path, grids=OTHER_GRIDS))
    text = str(caught.value)
    assert "t2w has shape 30 x 28 x 26 instead of 25 x 23 x 19, spacing 0.8 x 1.35 x 1.4 instead of 1 x 1.5 x 2" in text
    assert "t1n" not in text
    assert "t2f" not in text
    assert "co-registered, of 1 mm and skull-stripped" in text
    assert "or set resample to true" in text


def test_resampling_keeps_the_position_in_the_patient(tmp_path, caplog):
    paths = write_case(tmp_path, grids=OTHER_GRIDS)
    with caplog.at_level(logging.WARNING):
        image = load(paths, resample="true")
    assert image.shape == (4, *SHAPE)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert image.meta["filename_or_obj"] == paths[1]
    # linear interpolation of a smooth ball of 100 on voxels of about 1 mm
    np.testing.assert_allclose(image[2], sampled(SHAPE, OBLIQUE, 3), atol=8)
    assert image[2].argmax() == image[1].argmax()
    how = "resampled all sequences to its grid, without registering them; each covers at least 88 % of it"
    assert logged(caplog) == [f"{paths[1]}: {how}"]


@pytest.mark.parametrize("resample", [False, True])
def test_sequence_a_metre_away_is_refused(tmp_path, resample):
    away = OBLIQUE + np.eye(4, k=3) * 1000
    paths = write_case(tmp_path)
    nib.save(nib.Nifti1Image(nib.load(paths[2]).get_fdata(), away), paths[2])
    message = "not all sequences show the region" if resample else "not all sequences lie on its grid: t2w has centre"
    with pytest.raises(InputError, match=f"p1-t1c.nii.gz: {message}"):
        load(paths, resample=resample)


def test_resampling_agrees_with_scipy_on_a_coarser_grid(tmp_path):
    coarse = OBLIQUE @ np.diag([1.7, 1.3, 1.9, 1.0])
    paths = write_case(tmp_path, grids={"t2f": ((14, 17, 10), coarse)})
    image = load(paths, resample=True)
    to_coarse = np.linalg.inv(coarse) @ OBLIQUE
    stored = nib.load(paths[3]).get_fdata()
    oracle = ndimage.affine_transform(
        stored, to_coarse[:3, :3], to_coarse[:3, 3], SHAPE, order=1, mode="grid-constant", cval=0
    )
    np.testing.assert_allclose(image[3], oracle, atol=1e-2)


def test_sequences_already_on_the_grid_are_not_changed(tmp_path):
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
    shares = "t1n 0%, t1c 0%, t2w 0%, t2f 0%"
    assert logged(caplog) == [f"{paths[1]}: few voxels are 0 ({shares}); the network expects skull-stripped images"]


def test_skull_is_noticed_though_resampling_pads_with_zeros(tmp_path, caplog):
    small = ((8, 8, 8), OBLIQUE)
    paths = write_case(tmp_path, grids={"t2w": small})
    for path in paths:
        stored = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj) + 5, stored.affine), path)
    with caplog.at_level(logging.WARNING):
        image = load(paths, resample=True)
    assert (image[2] == 0).float().mean() > 0.5
    assert "few voxels are 0 (t1n 0%, t1c 0%, t2w 0%, t2f 0%)" in logged(caplog)[0]


@pytest.fixture
def raw_case():
    folder = SHARED_DATA / "brain_mri"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return list_cases(folder, images_per_case=4, find=find_sequences)[0]["image"]


def test_raw_scans_are_refused_with_the_difference(raw_case):
    with pytest.raises(InputError, match="not all sequences lie on its grid") as caught:
        load(raw_case)
    text = str(caught.value)
    assert "t2w has shape 224 x 256 x 26 instead of 256 x 224 x 26, rotated by 1" in text
    assert "t2f has shape 208 x 256 x 26 instead of 256 x 224 x 26, rotated by 1" in text
    assert "t1n has" not in text


def test_raw_scans_are_resampled_to_the_grid_of_t1c(raw_case, caplog):
    image = load(raw_case, resample=True)
    assert "few voxels are 0 (t1n 4%, t1c 10%, t2w 3%, t2f 3%)" in logged(caplog)[0]
    assert image.shape == (4, 256, 224, 26)
    np.testing.assert_allclose(image.affine, nib.load(raw_case[1]).affine, atol=1e-4)
    assert all((channel > 0).float().mean() > 0.5 for channel in image)
