import itertools
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.regions import (
    BRATS_REGIONS,
    BratsLabelsd,
    BratsRegionsd,
    merge_regions,
    numbering,
    paint_order,
    split_regions,
)
from scripts.transforms import LoadVolumed

AFFINE = torch.tensor([[0.0, -1, 0, 5], [1, 0, 0, -7], [0, 0.2, 2, 1], [0, 0, 0, 1]], dtype=torch.float64)


def label_map(values, **meta):
    return MetaTensor(torch.tensor(values, dtype=torch.uint8).reshape(1, -1, 1, 1), affine=AFFINE, meta=meta)


# Numbering


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 1, 2, 3], "2023"), ([0, 3], "2023"), ([0, 1, 2, 4], "older"), ([4], "older"), ([0, 1, 2], "either")],
)
def test_numbering_is_told_by_the_enhancing_class(values, kind):
    assert numbering(values, name="x") == kind


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [0, 1, 3, 4],
            "a/seg.nii.gz: holds both 3 and 4, which mean the same in BraTS 2023 and before: keep one of them.",
        ),
        (
            [0, 1, 5, 9],
            "a/seg.nii.gz: holds the label values 5, 9; BraTS has 1, 2, 3 (2023) or 1, 2, 4 (older).",
        ),
    ],
)
def test_values_of_no_numbering_are_refused_with_the_file(values, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        BratsLabelsd("label")({"label": label_map(values, filename_or_obj="a/seg.nii.gz")})
    assert str(caught.value) == message


def test_fractional_label_is_refused():
    with pytest.raises(ValueError, match=r"label holds 1.5, which is no class id"):
        BratsLabelsd("label")({"label": torch.tensor([1.5]).reshape(1, 1, 1, 1)})


def test_older_labels_become_those_of_2023_and_the_log_says_so_once(caplog):
    transform = BratsLabelsd("label")
    with caplog.at_level(logging.INFO):
        outs = [transform({"label": label_map([0, 1, 2, 4], filename_or_obj=f"{n}.nii")})["label"] for n in range(2)]
        new = transform({"label": label_map([0, 1, 2, 3], filename_or_obj="2.nii")})["label"]
    assert [out.flatten().tolist() for out in (*outs, new)] == [[0, 1, 2, 3]] * 3
    assert [record.message for record in caplog.records] == [
        "0.nii and others like it: 1 necrotic core, 2 edema, 4 enhancing: older than BraTS 2023, read as 1, 2, 3",
        "2.nii and others like it: 1 necrotic core, 2 edema, 3 enhancing: BraTS 2023",
    ]
    torch.testing.assert_close(outs[0].affine, AFFINE)
    assert outs[0].dtype == torch.uint8


def test_given_label_is_left_as_it_is():
    label = label_map([0, 1, 2, 4])
    BratsRegionsd("label")({"label": label})
    assert label.flatten().tolist() == [0, 1, 2, 4]


# Regions


@pytest.mark.parametrize("enhancing", [3, 4])
def test_regions_are_those_of_the_challenge(enhancing):
    label = label_map([0, 1, 2, enhancing], filename_or_obj="x")
    regions = BratsRegionsd("label")({"label": label})["label"]
    assert regions.shape == (3, 4, 1, 1)
    assert regions.dtype == torch.float32
    tumour_core, whole, enhancing_only = (channel.flatten().tolist() for channel in regions)
    assert tumour_core == [0, 1, 0, 1]
    assert whole == [0, 1, 1, 1]
    assert enhancing_only == [0, 0, 0, 1]
    torch.testing.assert_close(regions.affine, AFFINE)
    assert regions.meta["filename_or_obj"] == "x"


def test_paint_order_is_from_the_outermost_region_inwards():
    assert paint_order(BRATS_REGIONS) == [(1, 2), (0, 1), (2, 3)]


@pytest.mark.parametrize(
    "regions",
    [{"a": [1], "b": [2]}, {"a": [1, 2, 3], "b": [1]}, {"a": [1, 2], "b": [1, 2]}, {"a": [1, 2], "b": [3]}],
)
def test_regions_that_are_not_nested_are_refused(regions):
    with pytest.raises(ValueError, match="are not nested with one class id more from each to the next"):
        paint_order(regions)


# Writing back


def test_label_map_comes_back_from_its_regions():
    label = label_map(np.random.default_rng(0).integers(0, 4, 500).tolist(), filename_or_obj="x")
    back = merge_regions(split_regions(label))
    assert torch.equal(back.as_tensor(), label.as_tensor())
    assert back.dtype == torch.uint8
    torch.testing.assert_close(back.affine, AFFINE)


def test_nested_regions_come_back_from_their_label_map():
    rng = np.random.default_rng(1)
    whole = torch.from_numpy(rng.random((1, 9, 8, 7)) < 0.6)
    core = whole & torch.from_numpy(rng.random((1, 9, 8, 7)) < 0.6)
    regions = torch.cat([core, whole, core & torch.from_numpy(rng.random((1, 9, 8, 7)) < 0.6)]).float()
    assert torch.equal(split_regions(merge_regions(regions)), regions)


@pytest.mark.parametrize(("core", "whole", "enhancing"), itertools.product([0, 1], repeat=3))
def test_of_regions_that_are_not_nested_the_inner_one_is_believed(core, whole, enhancing):
    regions = torch.tensor([core, whole, enhancing], dtype=torch.float32).reshape(3, 1)
    read_again = split_regions(merge_regions(regions))[:, 0].tolist()
    assert read_again == [core or enhancing, whole or core or enhancing, enhancing]


def test_channels_that_are_not_the_regions_are_refused():
    with pytest.raises(ValueError, match=r"2 channels for the regions \['TC', 'WT', 'ET'\]"):
        merge_regions(torch.zeros(2, 4))


def test_label_read_from_a_file_keeps_its_grid(tmp_path):
    array = np.array([0, 1, 2, 4], np.uint8).reshape(4, 1, 1)
    nib.save(nib.Nifti1Image(array, AFFINE.numpy()), tmp_path / "seg.nii.gz")
    label = LoadVolumed("label")({"label": str(tmp_path / "seg.nii.gz")})
    back = merge_regions(BratsRegionsd("label")(label)["label"])
    assert back.flatten().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(back.affine, AFFINE)
