"""Small data sets in the layouts that `scripts.prepare_open` reads."""

import json

import nibabel as nib
import numpy as np

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
SHAPE = (16, 14, 12)
NAMES = {"1": "spleen", "2": "colon", "3": "vertebrae_L1", "4": "lung_left"}


def body(seed=0):
    """An image whose body fills the middle, int16."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[2:14, 2:12] = np.random.default_rng(seed).integers(200, 400, (12, 10, 12))
    return voxels


def blocks():
    """A label map with a block of each of `NAMES`."""
    labels = np.zeros(SHAPE, np.uint8)
    for label in range(1, 5):
        labels[3 * label - 1 : 3 * label + 1, 4:8, 3:6] = label
    return labels


def save(voxels, path, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def masks_subject(folder, *, image="ct", seed=0):
    """Write a subject as TotalSegmentator's data sets have it."""
    save(body(seed), folder / f"{image}.nii.gz")
    for label, name in NAMES.items():
        save((blocks() == int(label)).astype(np.uint8), folder / "segmentations" / f"{name}.nii.gz")
    return folder


def map_subject(folder, *, seed=0):
    """Write a subject with one label map and its names."""
    save(body(seed), folder / "image.nii.gz")
    save(blocks(), folder / "label.nii.gz")
    (folder / "names.json").write_text(json.dumps(NAMES))
    return folder


def labels_of(path):
    return np.asarray(nib.load(path).dataobj)
