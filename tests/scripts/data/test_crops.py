from collections import Counter

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.transforms import (
    Compose,
    EnsureTyped,
    Lambdad,
    RandFlipd,
    RandScaleIntensityd,
    SpatialCropd,
    SpatialPadd,
)

from scripts.common.errors import InputError
from scripts.data.crops import RandCropByPlacesd
from scripts.data.datasets import KINDS, make_dataset
from scripts.data.places import PLACES, ForegroundPlacesd
from scripts.data.store import ChunkedVolume, read_case, write_case

OBLIQUE = torch.tensor([[-2, 0.3, 0, 5], [0.3, 1.5, 0.2, 6], [0, 0.1, 3, 7], [0, 0, 0, 1.0]], dtype=torch.float64)
KEYS = ("image", "label")
SHAPES = {"large": (30, 28, 26), "thin": (30, 28, 5), "small": (7, 6, 5), "as the crop": (12, 12, 12)}
SIZE = (12, 12, 12)


def make_case(shape, seed=0):
    """Voxels have distinct values; the label is mostly background."""
    rng = np.random.default_rng(seed)
    image = 1 + torch.arange(2 * np.prod(shape), dtype=torch.float32).reshape(2, *shape)
    label = torch.from_numpy(rng.choice([0, 1, 2, 7], (1, *shape), p=[0.9, 0.07, 0.02, 0.01])).float()
    meta = {"filename_or_obj": f"case{seed}.nii"}
    return {key: MetaTensor(value, affine=OBLIQUE, meta=meta) for key, value in zip(KEYS, (image, label), strict=True)}


def cropper(size=SIZE, samples=8, seed=3, **options):
    return RandCropByPlacesd(KEYS, spatial_size=size, num_samples=samples, **options).set_random_state(seed)


def stored(case, tmp_path, *, mmap=True):
    write_case(case, tmp_path / "case.pt")
    return read_case(tmp_path / "case.pt", list(case), mmap=mmap, verify=True)


@pytest.mark.parametrize("padding_mode", ["edge", "constant"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_crops_are_those_of_monai_with_the_same_centres(shape, padding_mode, monkeypatch):
    """Padded as `SpatialPadd` does, cut as `SpatialCropd` does, with the same affine."""
    case = ForegroundPlacesd()(make_case(shape))
    cut = cropper(padding_mode=padding_mode)
    starts = cut.randomize(case[PLACES], shape)
    monkeypatch.setattr(cut, "randomize", lambda *_: starts)
    padded = SpatialPadd(KEYS, spatial_size=SIZE, mode=padding_mode)(make_case(shape))
    for start, crop in zip(starts, cut(case), strict=True):
        first = np.maximum(start, 0)
        expected = SpatialCropd(KEYS, roi_start=first, roi_end=first + SIZE)(padded)
        for key in KEYS:
            assert crop[key].shape[1:] == SIZE
            assert torch.equal(crop[key].as_tensor(), expected[key].as_tensor())
            assert torch.allclose(crop[key].affine, expected[key].affine)
            assert crop[key].meta["filename_or_obj"] == "case0.nii"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_store_gives_the_crops_of_tensors(shape, mmap, tmp_path):
    case = ForegroundPlacesd()(make_case(shape))
    from_store = cropper()(stored(case, tmp_path, mmap=mmap))
    for crop, other in zip(cropper()(case), from_store, strict=True):
        assert crop.keys() == other.keys() == set(KEYS)
        for key in KEYS:
            assert type(crop[key]) is type(other[key]) is MetaTensor
            assert crop[key].dtype == other[key].dtype
            assert torch.equal(crop[key].as_tensor(), other[key].as_tensor())
            assert torch.equal(crop[key].affine, other[key].affine)
            assert crop[key].meta.keys() == other[key].meta.keys()


@pytest.mark.parametrize(("corner", "first"), [((0, 0, 0), (0, 0, 0)), ((29, 27, 25), (18, 16, 14))])
def test_crops_at_borders_lie_inside(corner, first):
    places = {"classes": {3: (1, 0, 1)}, "at": torch.tensor([np.ravel_multi_index(corner, (30, 28, 26))])}
    assert [start.tolist() for start in cropper(samples=1, neg=0).randomize(places, (30, 28, 26))] == [list(first)]


@pytest.mark.parametrize("balanced", [False, True])
def test_shares_of_classes(balanced):
    """Half of the centres are background; of the rest, classes have the share of their voxels, or the same one."""
    shape = (60, 60, 60)
    places = {"classes": {0: (10_000, 0, 1), 1: (900, 1, 2), 2: (100, 2, 3)}, "at": torch.arange(3)}
    cut = cropper(size=(1, 1, 1), samples=4000, class_balanced=balanced)
    found = Counter(int(np.ravel_multi_index(start, shape)) for start in cut.randomize(places, shape))
    expected = {0: 0.5, 1: 0.25, 2: 0.25} if balanced else {0: 0.5, 1: 0.45, 2: 0.05}
    for key, share in expected.items():
        assert found[key] / 4000 == pytest.approx(share, abs=0.03)


def test_without_foreground_all_crops_are_background_and_the_other_way_round():
    for only in (0, 5):
        places = {"classes": {only: (1, 0, 1)}, "at": torch.tensor([0])}
        assert {tuple(start) for start in cropper(size=(1, 1, 1)).randomize(places, (9, 9, 9))} == {(0, 0, 0)}


def test_case_of_air_is_cut_anywhere():
    air = ForegroundPlacesd()({"image": torch.zeros(1, 20, 20, 20), "label": torch.zeros(1, 20, 20, 20)})
    assert air[PLACES]["classes"] == {}
    assert len({tuple(start) for start in cropper(size=(4, 4, 4)).randomize(air[PLACES], (20, 20, 20))}) == 8


def test_crops_are_copies_and_other_entries_are_kept(tmp_path):
    case = ForegroundPlacesd()({**make_case(SIZE), "note": ["a"], "other": torch.ones(1, 3, 3, 3)})
    first, second = cropper(samples=2)(case)
    first["image"][:] = -1
    first["note"].append("b")
    assert (second["image"] >= 0).all()
    assert second["note"] == case["note"] == ["a"]
    assert float(case["image"].min()) == 1
    crop = cropper(samples=1)(stored(case, tmp_path))[0]
    assert torch.equal(crop["other"], case["other"]), "read whole"


def test_only_the_parts_of_the_crops_are_read(tmp_path, monkeypatch):
    case = stored(ForegroundPlacesd()(make_case(SHAPES["large"])), tmp_path)
    boxes = []
    part = ChunkedVolume.part
    monkeypatch.setattr(ChunkedVolume, "part", lambda self, box: boxes.append(box) or part(self, box))
    cropper(samples=2)(case)
    assert [[side.stop - side.start for side in box] for box in boxes] == [list(SIZE)] * 4


def test_wrong_weights_and_missing_places_are_refused():
    for pos, neg in ((0, 0), (-1, 2)):
        with pytest.raises(InputError, match=f"pos is {pos} and neg {neg}: give weights of 0 or more"):
            cropper(pos=pos, neg=neg)
    with pytest.raises(InputError, match="list ForegroundPlacesd before RandCropByPlacesd"):
        cropper()(make_case(SIZE))


# With datasets and loaders


def steps():
    return Compose(
        [
            Lambdad("image", lambda seed: make_case((30, 28, 9), int(seed))["image"], overwrite="image"),
            Lambdad("label", lambda seed: make_case((30, 28, 9), int(seed))["label"], overwrite="label"),
            EnsureTyped(KEYS),
            ForegroundPlacesd(),
            RandCropByPlacesd(KEYS, spatial_size=SIZE, num_samples=2),
            RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
        ]
    )


def items():
    return [{"image": str(seed), "label": str(seed), "case": f"case {seed}"} for seed in range(4)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_kind_draws_the_same_batches_from_the_same_seed(num_workers, tmp_path):
    drawn = []
    for kind in (*KINDS, "store"):
        dataset = make_dataset(items(), steps(), kind=kind, cache_dir=tmp_path)
        dataset.transform.set_random_state(11)
        torch.manual_seed(5)
        loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=num_workers)
        drawn.append([batch for _ in range(2) for batch in loader])
    assert [type(make_dataset(items(), steps(), kind=kind)) for kind in ("cache", "plain")] == [CacheDataset, Dataset]
    for other in drawn[1:]:
        for batch, another in zip(drawn[0], other, strict=True):
            assert batch["case"] == another["case"]
            assert batch["image"].shape == (4, 2, *SIZE)
            for key in KEYS:
                assert torch.equal(batch[key].as_tensor(), another[key].as_tensor())
                assert torch.equal(batch[key].affine, another[key].affine)
