from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    BorderPadd,
    CenterSpatialCropd,
    Compose,
    CropForegroundd,
    Flipd,
    Invertd,
    NormalizeIntensityd,
    Orientationd,
    Resized,
    ResizeWithPadOrCropd,
    Rotate90d,
    SpatialPadd,
    Zoomd,
)
from scipy.spatial.transform import Rotation

from scripts.data.transforms import Spacingd
from scripts.inference.axis_maps import NotAlongAxesError, way_back
from scripts.inference.tiles import restore

ORIENTATIONS = ["".join(codes) for axes in permutations(("RL", "AP", "SI")) for codes in product(*axes)]


def affine_of(codes, spacing_mm, degrees=(0, 0, 0)):
    turned = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    ornt = nib.orientations.axcodes2ornt(codes)
    signs = np.zeros((3, 3))
    signs[ornt[:, 0].astype(int), range(3)] = ornt[:, 1]
    return nib.affines.from_matvec(turned @ signs @ np.diag(spacing_mm), [30, -20, 10])


def image_of(rng, shape, affine):
    image = rng.random((1, *shape)).astype(np.float32)
    image *= rng.random(image.shape) < 0.02  # a foreground that is smaller than the volume
    image[(0, *(n // 2 for n in shape))] = 1
    return MetaTensor(torch.from_numpy(image), affine=torch.from_numpy(affine))


def check_equal_to_monai(image, transform, rng, channels=5):
    """The label map, shape and affine are those of inverting all logits at once."""
    case = transform({"image": image})
    logits = torch.from_numpy(rng.normal(size=(channels, *case["image"].shape[1:])) * 5).float()
    maps = way_back(case["image"])
    ours = restore(logits, maps)
    inverse = Invertd("pred", orig_keys="image", transform=transform, nearest_interp=False)
    theirs = inverse({"image": case["image"], "pred": MetaTensor(logits)})["pred"]
    assert ours.shape == theirs.shape[1:] == image.shape[1:]
    np.testing.assert_allclose(maps.affine, theirs.affine, atol=1e-6)
    best = theirs.as_tensor().topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-5) | (best[0] == 0)  # outside of the crop all are 0
    np.testing.assert_array_equal(ours[clear], theirs.as_tensor().argmax(0)[clear])
    assert clear.any()


def bundle_chain(spacing_mm):
    return Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=spacing_mm, mode="bilinear"),
            CropForegroundd("image", source_key="image"),
            NormalizeIntensityd("image", nonzero=True),
        ]
    )


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_all_48_orientations_equal_monai(codes):
    rng = np.random.default_rng(ORIENTATIONS.index(codes))
    image = image_of(rng, (14, 11, 9), affine_of(codes, (1.3, 2.0, 3.1), degrees=(4, -3, 6)))
    check_equal_to_monai(image, bundle_chain((2.0, 1.7, 2.3)), rng)


@pytest.mark.parametrize("seed", range(30))
def test_random_chains_equal_monai(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 26, 3)
    affine = affine_of(ORIENTATIONS[rng.integers(48)], rng.uniform(0.5, 5, 3), degrees=rng.uniform(-10, 10, 3))
    steps = [
        Orientationd("image", axcodes=ORIENTATIONS[rng.integers(48)], labels=None),
        Flipd("image", spatial_axis=int(rng.integers(3))),
        CropForegroundd("image", source_key="image", margin=int(rng.integers(3)), k_divisible=int(rng.integers(1, 4))),
        CenterSpatialCropd("image", roi_size=rng.integers(1, 20, 3).tolist()),
        SpatialPadd("image", spatial_size=rng.integers(1, 20, 3).tolist()),
        BorderPadd("image", spatial_border=rng.integers(0, 4, 6).tolist()),
        ResizeWithPadOrCropd("image", spatial_size=rng.integers(1, 25, 3).tolist()),
    ]
    picked = [steps[i] for i in rng.permutation(len(steps))[: rng.integers(1, 6)]]
    picked.insert(int(rng.integers(len(picked) + 1)), Spacingd("image", pixdim=rng.uniform(0.5, 5, 3).tolist()))
    check_equal_to_monai(image_of(rng, shape, affine), Compose(picked), rng)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 30), (40, 1, 35), (33, 65, 2), (70, 40, 3)])
@pytest.mark.parametrize("spacing_mm", [(0.4, 0.7, 1.0), (1.0, 1.0, 1.0), (3.0, 3.7, 4.0)])
def test_thin_volumes_and_volumes_of_several_tiles_equal_monai(shape, spacing_mm):
    rng = np.random.default_rng(sum(shape))
    check_equal_to_monai(image_of(rng, shape, affine_of("LPS", (1.0, 1.2, 1.5))), bundle_chain(spacing_mm), rng)


def test_affine_rounded_to_float32_is_along_the_axes():
    rng = np.random.default_rng(0)
    affine = affine_of("LPI", (0.7, 0.7, 5.0), degrees=(17, -12, 31)).astype(np.float32).astype(np.float64)
    case = bundle_chain((1.5, 1.5, 2.0))({"image": image_of(rng, (60, 50, 9), affine)})
    assert way_back(case["image"]).shape == (60, 50, 9)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Rotate90d("image"), "Rotate90 is not inverted along the axes"),
        (Zoomd("image", zoom=1.5), "Zoom is not inverted along the axes"),
        (Spacingd("image", pixdim=2, mode="nearest"), "SpatialResample interpolates with nearest and border"),
        (Spacingd("image", pixdim=2, diagonal=True), "SpatialResample its axes are turned or sheared by"),
        (
            Compose([Spacingd("image", pixdim=2), Spacingd("image", pixdim=0.9)]),
            "resamples more than once",
        ),
    ],
)
def test_transforms_that_are_no_map_along_the_axes_are_named(transform, message):
    image = image_of(np.random.default_rng(0), (9, 9, 9), affine_of("RAS", (1, 1, 1), degrees=(10, 0, 0)))
    with pytest.raises(NotAlongAxesError, match=message):
        way_back(transform({"image": image})["image"])


@pytest.mark.parametrize("size", [(16, 16, -1), (40, 9, -1), (16, 16, 16)])
def test_resizing_is_inverted_as_by_monai(size):
    rng = np.random.default_rng(0)
    image = image_of(rng, (30, 23, 7), affine_of("PLS", (1.5, 1.0, 4.0), (0, 0, 20)))
    transform = Compose(
        [Orientationd("image", axcodes="RAS", labels=None), Resized("image", spatial_size=size, mode="trilinear")]
    )
    check_equal_to_monai(image, transform, rng)


@pytest.mark.parametrize(("mode", "align_corners"), [("nearest", None), ("trilinear", True)])
def test_other_ways_of_resizing_are_left_to_monai(mode, align_corners):
    image = image_of(np.random.default_rng(0), (8, 8, 8), affine_of("RAS", (1, 1, 1)))
    resized = Resized("image", spatial_size=(4, 4, 4), mode=mode, align_corners=align_corners)({"image": image})
    with pytest.raises(NotAlongAxesError, match=f"Resize interpolates with {mode}"):
        way_back(resized["image"])
