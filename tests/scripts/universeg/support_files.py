"""Small support sets as files."""

import nibabel as nib
import numpy as np
from monai.transforms import Compose, EnsureTyped, Orientationd, Resized
from PIL import Image

from scripts.io.pictures import LoadPictureOrVolumed
from scripts.universeg.transforms import ScaleSlicesd

KEYS = ["image", "mask"]
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def transform(size=16):
    """As the bundle's preprocessing of axial slices."""
    options = {"allow_missing_keys": True}
    return Compose(
        [
            LoadPictureOrVolumed(KEYS, **options),
            Orientationd(KEYS, axcodes="PLS", labels=None, **options),
            Resized(KEYS, spatial_size=(size, size, -1), mode=["trilinear", "nearest-exact"], **options),
            ScaleSlicesd("image"),
            EnsureTyped(KEYS, **options),
        ]
    )


def disc(shape, centre, radius):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def write_pictures(folder, *, n=4, shape=(20, 24), classes=(1, 2), seed=0):
    """Write pictures with one bright disc per class; return the folder."""
    generator = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(n):
        label = np.zeros(shape, dtype=np.uint8)
        for class_id in classes:
            label[disc(shape, generator.integers(6, [shape[0] - 6, shape[1] - 6]), 4)] = class_id
        image = (label * 60 + generator.integers(0, 40, shape)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"p{index}.png")
        Image.fromarray(label).save(folder / "labels" / f"p{index}.png")
    return folder


def write_volume(folder, *, labelled=(1, 4), depth=6, shape=(20, 24), name="scan", class_of=lambda z: 1):
    """Write a volume of which some slices are labelled; return the folder and the paths."""
    generator = np.random.default_rng(1)
    image, label = (generator.random((*shape, depth)).astype(np.float32), np.zeros((*shape, depth), dtype=np.uint8))
    for z in labelled:
        label[disc(shape, (10, 10), 5), z] = class_of(z)
    paths = {}
    for kind, values in (("images", image), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        paths[kind] = folder / kind / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(values, AFFINE), paths[kind])
    return folder, paths["images"], paths["labels"]
