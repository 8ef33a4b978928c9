import re

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.common.organs import IDS_OF_NAMES
from scripts.io.organ_folder import read_organ_folder
from tests.conftest import SHARED_DATA

AFFINE = np.array([[0, -2.0, 0, 5], [3, 0, 0, -7], [0, 0, 4, 1], [0, 0, 0, 1]])


def ids_of(names, path):
    return {name: IDS_OF_NAMES[name] for name in names if name in IDS_OF_NAMES}


def write(path, array, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def box(*cells, value=1, dtype=np.uint8):
    array = np.zeros((4, 5, 6), dtype)
    array[list(cells)] = value
    return array


def test_files_become_one_label_map_with_their_grid(tmp_path):
    write(tmp_path / "spleen.nii.gz", box(0, 1))
    write(tmp_path / "liver.nii", box(1, value=255, dtype=np.int16)[..., None])
    write(tmp_path / "brain.nii.gz", box(1, 2, dtype=np.float32))
    write(tmp_path / "heart.nii.gz", box())
    (tmp_path / "statistics.json").touch()
    volume, found = read_organ_folder(tmp_path, ids_of, ignore_id=255)
    assert [np.unique(plane).tolist() for plane in volume.stored] == [[1], [5], [255], [0]]
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert found.voxels == {"spleen": 60, "liver": 30, "brain": 60}
    assert found.overlap == 30


@pytest.mark.parametrize(
    ("name", "array", "affine", "message"),
    [
        ("liver", box(1, value=2) + box(2, value=1), AFFINE, "liver.nii.gz: holds values from 0 to 2; give a mask of"),
        ("liver", box(1)[:3], AFFINE, "liver.nii.gz: another grid than spleen.nii.gz: shape 3 x 5 x 6 instead of"),
        ("liver", box(1), 2 * AFFINE, "liver.nii.gz: another grid than spleen.nii.gz: spacing"),
    ],
)
def test_files_that_are_no_masks_of_one_grid_are_refused(tmp_path, name, array, affine, message):
    write(tmp_path / "spleen.nii.gz", box(0))
    write(tmp_path / f"{name}.nii.gz", array, affine)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/{message}")):
        read_organ_folder(tmp_path, ids_of, ignore_id=255)


def test_folder_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no NIfTI files; give a folder with a file per organ"):
        read_organ_folder(tmp_path, ids_of, ignore_id=255)


def test_real_label_map_split_into_organs_comes_back(tmp_path):
    source = SHARED_DATA / "ct_torso" / "label_btcv13.nii.gz"
    if not source.is_file():
        pytest.skip(f"{source} is absent")
    image = nib.load(source)
    label = np.asarray(image.dataobj)
    names = {int(value): f"organ_{value}" for value in np.unique(label) if value}
    for value, name in names.items():
        nib.save(nib.Nifti1Image((label == value).astype(np.uint8), image.affine), tmp_path / f"{name}.nii.gz")
    ids = {name: value for value, name in names.items()}
    volume, found = read_organ_folder(tmp_path, lambda *_: ids, ignore_id=255)
    np.testing.assert_array_equal(volume.stored, label)
    assert found.overlap == 0
