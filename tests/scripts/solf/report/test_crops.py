from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest

from scripts.io.nifti import StoredVolume
from scripts.solf.report.crops import CropFolder
from tests.scripts.solf.report.test_slices import ORGANS, kidneys

OBLIQUE = nib.affines.from_matvec(
    np.array([[3.9, 0.3, 0.1], [-0.3, 4.0, 0.2], [0.05, -0.2, 5.0]]), [-81.5, 33.25, -700]
)
LIA = nib.affines.from_matvec(np.array([[-4.0, 0, 0], [0, 0, 4], [0, -5, 0]]), [80, -60, 90])


def crop(folder, labels, affine, image=None, case="a"):
    CropFolder(folder, ORGANS).write(case, 2, labels, affine, image=image)
    return nib.load(folder / case / "2_kidney_right_labels.nii.gz")


@pytest.mark.parametrize("affine", [OBLIQUE, LIA], ids=["oblique", "LIA"])
def test_crop_lies_exactly_where_its_voxels_were(tmp_path, affine):
    image = StoredVolume(np.arange(kidneys().size, dtype=np.int32).reshape(kidneys().shape), affine, 0.5, -3.0)
    cropped = crop(tmp_path, kidneys(), affine, image)
    labels = np.asarray(cropped.dataobj)
    assert labels.dtype == np.uint8
    assert 0 < labels.size < kidneys().size
    assert (labels == 2).sum() == (kidneys() == 2).sum()
    places = np.round(nib.affines.apply_affine(np.linalg.inv(affine) @ cropped.affine, np.argwhere(labels == 2)), 3)
    assert np.array_equal(places, np.argwhere(kidneys() == 2))
    grey = nib.load(tmp_path / "a" / "2_kidney_right_image.nii.gz")
    assert np.allclose(grey.affine, cropped.affine, atol=1e-4)
    index = tuple(np.argwhere(kidneys() == 2)[0])
    own = tuple(np.argwhere(labels == 2)[0])
    assert grey.get_fdata()[own] == image.stored[index] * 0.5 - 3
    assert grey.get_data_dtype() == np.int32


def test_image_of_another_grid_keeps_its_own_voxels(tmp_path):
    fine = np.random.default_rng(0).integers(0, 99, (80, 60, 36), dtype=np.int16)
    affine = np.diag([2.0, 2, 5, 1])
    cropped = crop(tmp_path, kidneys(), np.diag([4.0, 4, 5, 1]), StoredVolume(fine, affine))
    grey = nib.load(tmp_path / "a" / "2_kidney_right_image.nii.gz")
    start = np.round(np.linalg.inv(affine) @ grey.affine[:, 3])[:3].astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, grey.shape, strict=True))
    assert np.array_equal(np.asarray(grey.dataobj), fine[box])
    corner_mm = nib.affines.apply_affine(cropped.affine, np.array(cropped.shape) - 1)
    assert (nib.affines.apply_affine(grey.affine, np.array(grey.shape) - 1) >= corner_mm).all()


def test_image_elsewhere_is_left_out(tmp_path):
    affine = nib.affines.from_matvec(np.eye(3), [5000, 0, 0])
    crop(tmp_path, kidneys(), np.diag([4.0, 4, 5, 1]), StoredVolume(np.ones((4, 4, 4), np.int16), affine))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["2_kidney_right_labels.nii.gz"]


def test_corrected_crop_is_never_replaced(tmp_path):
    folder = CropFolder(tmp_path, ORGANS)
    folder.write("a", 2, kidneys(), np.eye(4), image=None)
    mended = nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4))
    nib.save(mended, tmp_path / "a" / "2_kidney_right_labels.nii.gz")
    folder.write("a", 2, kidneys(), np.eye(4), image=None)
    assert (folder.written, folder.kept) == (1, 1)
    assert nib.load(tmp_path / "a" / "2_kidney_right_labels.nii.gz").shape == (2, 2, 2)


def test_ids_above_255_are_kept(tmp_path):
    labels = kidneys().astype(np.uint16) * 500
    folder = CropFolder(tmp_path, {1000: "a b"})
    folder.write("a", 1000, labels, np.eye(4), image=None)
    assert np.asarray(nib.load(tmp_path / "a" / "1000_a b_labels.nii.gz").dataobj).max() == 33000


def test_colour_tables_name_every_label(tmp_path):
    CropFolder(tmp_path, {1: "left kidney", 7: 'the "other"'})
    slicer = (tmp_path / "labels.ctbl").read_text().splitlines()
    assert slicer[0] == "# Color table file"
    assert [line.split(" ")[:2] for line in slicer[1:]] == [
        ["0", "Background"],
        ["1", "left_kidney"],
        ["7", 'the_"other"'],
    ]
    assert all(len(line.split(" ")) == 6 for line in slicer[1:])
    snap = (tmp_path / "labels.label.txt").read_text().splitlines()
    assert [line.split('"')[1] for line in snap] == ["Background", "left kidney", "the 'other'"]
    assert all(len(line.split('"')[0].split()) == 7 for line in snap)


def test_workspace_names_both_files(tmp_path):
    crop(tmp_path, kidneys(), OBLIQUE, StoredVolume(np.zeros(kidneys().shape, np.int16), OBLIQUE), case="a&b")
    root = ElementTree.parse(tmp_path / "a&b" / "2_kidney_right.itksnap").getroot()  # noqa: S314 (our own file)
    layers = [{entry.get("key"): entry.get("value") for entry in layer} for layer in root.find("folder")]
    assert [layer["Role"] for layer in layers] == ["MainRole", "SegmentationRole"]
    for layer, name in zip(layers, ("image", "labels"), strict=True):
        assert layer["AbsolutePath"] == str(tmp_path / "a&b" / f"2_kidney_right_{name}.nii.gz")


def test_unsafe_names_become_safe_files(tmp_path):
    folder = CropFolder(tmp_path, {2: "../kidney"})
    folder.write("../a", 2, kidneys(), np.eye(4), image=None)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.nii.gz")] == [
        "__a/2___kidney_labels.nii.gz"
    ]
