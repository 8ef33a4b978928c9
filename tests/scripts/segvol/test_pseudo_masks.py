import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from scripts.common.errors import InputError
from scripts.segvol.pseudo_masks import OFFSETS, CleanPseudoMaskd, PseudoMaskd, clean_pseudo_mask, graph_regions


def slow_regions(image, min_voxels):
    """The specification, voxel by voxel."""
    smooth = gaussian_filter(image.astype(np.float32), 0.8)
    edges = []
    for number, offset in enumerate(OFFSETS):
        for place in np.ndindex(image.shape):
            other = tuple(np.add(place, offset))
            if all(0 <= i < n for i, n in zip(other, image.shape, strict=True)):
                edges.append((abs(smooth[place] - smooth[other]), number, place, other))
    edges.sort(key=lambda edge: edge[:3])
    positive = [edge[0] for edge in edges if edge[0] > 0]
    threshold = np.float32(np.percentile(positive, 25)) if positive else 0
    group = {place: {place} for place in np.ndindex(image.shape)}

    def join(a, b):
        union = group[a] | group[b]
        for place in union:
            group[place] = union

    for weight, _, a, b in edges:
        if weight <= threshold and group[a] is not group[b]:
            join(a, b)
    for _, _, a, b in edges:
        if group[a] is not group[b] and min(len(group[a]), len(group[b])) < min_voxels:
            join(a, b)
    return group


def partition(regions):
    return {frozenset(map(tuple, np.argwhere(regions == number))) for number in np.unique(regions)}


@pytest.mark.parametrize("min_voxels", [1, 5, 40])
@pytest.mark.parametrize("kind", ["noise", "steps", "constant"])
def test_regions_are_those_of_the_slow_way(kind, min_voxels):
    rng = np.random.default_rng(3)
    image = rng.random((4, 7, 6))
    if kind == "steps":
        image = np.round(image * 0.2) + 10 * (np.indices(image.shape)[2] > 2)
    if kind == "constant":
        image = np.ones(image.shape)
    expected = {frozenset(group) for group in slow_regions(image, min_voxels).values()}
    found = graph_regions(image, min_voxels=min_voxels)
    assert partition(found) == expected
    assert np.unique(found).tolist() == list(range(len(expected)))


def test_regions_are_large_enough_and_separate_what_differs():
    image = np.zeros((8, 24, 24))
    image[2:6, 4:12, 4:12] = 1.0
    image += 0.02 * np.random.default_rng(0).standard_normal(image.shape)
    regions = graph_regions(image, min_voxels=60)
    assert np.bincount(regions.ravel()).min() >= 60
    inside = np.bincount(regions[3:5, 6:10, 6:10].ravel()).argmax()
    assert (regions[:, :, 16:] != inside).all()


def test_image_that_is_no_volume_is_refused():
    with pytest.raises(InputError, match=r"image is \(4, 4\): give a volume"):
        graph_regions(np.zeros((4, 4)))


def test_cleaning_opens_closes_and_drops_small_parts():
    ids = np.full((10, 10, 10), 7, dtype=np.int32)
    ids[2:8, 2:8, 2:8] = 3
    ids[4, 4, 8:] = 3  # a line, which opening removes
    ids[0, 0, :2] = 5  # too small
    found = clean_pseudo_mask(ids, min_share=0.01)
    assert set(np.unique(found)) == {0, 3, 7}
    core = found == 3
    assert core[2:8, 2:8, 2:8].sum() > 150
    assert not core[4, 4, 9]
    assert (found[0, 0, :2] == 0).all()
    assert not np.isin(found[ids == 3], 7).any()


def test_cleaning_leaves_nothing_of_nothing():
    assert (clean_pseudo_mask(np.zeros((4, 4, 4))) == 0).all()
    cleaned = CleanPseudoMaskd("pseudo")({"pseudo": torch.zeros(1, 4, 4, 4, dtype=torch.int16)})
    assert (cleaned["pseudo"] == 0).all()


def test_pseudo_mask_lies_on_the_grid_of_the_image_with_the_organs_as_regions():
    image = torch.rand(1, 12, 40, 36, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 12, 40, 36)
    label[0, 3:9, 8:20, 8:20] = 2
    label[0, 3:9, 24:36, 8:20] = 1
    case = {"image": MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 3, 4, 1]))), "label": label}
    found = PseudoMaskd(size=(32, 20, 18))(case)["pseudo"]
    assert found.shape == image.shape
    assert found.dtype == torch.int16
    assert torch.equal(found.affine, case["image"].affine)
    for class_id in (1, 2):
        values = found[label == class_id].unique()
        assert len(values) == 1
        assert (found == values).sum() == (label == class_id).sum()
    assert PseudoMaskd(size=(32, 20, 18), enabled=False)(case).keys() == {"image", "label"}
    assert "pseudo" in PseudoMaskd(size=(4, 4, 4))({"image": image})
