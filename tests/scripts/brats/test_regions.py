import itertools
import logging
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.brats.regions import (
    BRATS_REGIONS,
    BratsLabelsd,
    BratsRegionsd,
    nested_label_map,
    nesting_order,
    numbering,
    split_regions,
    written_numbering,
)
from scripts.common.errors import InputError
from scripts.common.fingerprint import fingerprint
from scripts.io.loading import LoadVolumed

AFFINE = torch.tensor([[0.0, -1, 0, 5], [1, 0, 0, -7], [0, 0.2, 2, 1], [0, 0, 0, 1]], dtype=torch.float64)


def label_map(values, dtype=torch.uint8, **meta):
    return MetaTensor(torch.tensor(values, dtype=dtype).reshape(1, -1, 1, 1), affine=AFFINE, meta=meta)


def merge_regions(masks):
    """Make a label map (1, ...) of region channels (C, ...), as inference does of logits."""
    return nested_label_map(lambda channel: masks[channel][None] - 0.5, len(masks))


@pytest.fixture(autouse=True)
def nothing_logged_yet(monkeypatch):
    monkeypatch.setattr("scripts.brats.regions._logged_kinds", set())


# Numbering


@pytest.mark.parametrize("value", [3, 4])
def test_written_numbering_changes_the_enhancing_class(value):
    assert written_numbering(value) == {3: value}


@pytest.mark.parametrize("value", [-1, 0, 1, 2, 5, "4", 4.0, True, None])
def test_other_enhancing_labels_are_refused(value):
    message = f"enhancing_label is {value!r}: give 3 (BraTS 2023) or 4 (the years before)."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        written_numbering(value)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 1, 2, 3], "2023"), ([0, 3], "2023"), ([0, 1, 2, 4], "older"), ([4], "older"), ([0, 1, 2], "either")],
)
def test_numbering_is_known_by_the_enhancing_class(values, kind):
    assert numbering(values, name="x") == kind


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [0, 1, 3, 4],
            "a/seg.nii.gz: holds both 3 and 4, enhancing tumour in 2023 and in the years before: keep one.",
        ),
        (
            [0, 1, 2**30],
            "a/seg.nii.gz: holds the label values 1073741824; BraTS has 1, 2, 3 (2023) or 1, 2, 4 (older).",
        ),
        (
            [-1, 0, 1, 2],
            "a/seg.nii.gz: holds the label values -1; BraTS has 1, 2, 3 (2023) or 1, 2, 4 (older).",
        ),
        (
            [0, 1, 5, 9],
            "a/seg.nii.gz: holds the label values 5, 9; BraTS has 1, 2, 3 (2023) or 1, 2, 4 (older).",
        ),
    ],
)
def test_values_outside_both_numberings_are_refused_with_the_file(values, message):
    with pytest.raises(InputError) as caught:
        BratsLabelsd("label")({"label": label_map(values, dtype=torch.int32, filename_or_obj="a/seg.nii.gz")})
    assert str(caught.value) == message


def test_fractional_label_is_refused():
    with pytest.raises(InputError, match=r"label holds 1.5, not a class id"):
        BratsLabelsd("label")({"label": torch.tensor([1.5]).reshape(1, 1, 1, 1)})


def test_older_labels_become_those_of_2023():
    older = BratsLabelsd("label")({"label": label_map([0, 1, 2, 4])})["label"]
    new = BratsLabelsd("label")({"label": label_map([0, 1, 2, 3])})["label"]
    assert older.flatten().tolist() == new.flatten().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(older.affine, AFFINE)
    assert older.dtype == torch.uint8


def test_each_numbering_is_logged_once_per_process(caplog):
    values = [[0, 1, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3], [0, 1], [0, 3]]
    with caplog.at_level(logging.INFO):
        for index, held in enumerate(values):
            for transform in (BratsLabelsd("label"), BratsRegionsd("label")):
                transform({"label": label_map(held, filename_or_obj=f"{index}.nii")})
    assert [record.message for record in caplog.records] == [
        "0.nii and other labels use the numbering before BraTS 2023: 1 necrotic core, 2 edema, 4 enhancing, which is "
        "read as 3",
        "2.nii and other labels use the numbering of BraTS 2023: 1 necrotic core, 2 edema, 3 enhancing",
        "3.nii and other labels use neither 3 nor 4, so they have no enhancing tumour in any numbering",
    ]


@pytest.mark.parametrize("kind", [BratsLabelsd, BratsRegionsd])
def test_use_does_not_change_the_fingerprint(kind):
    transform = kind("label")
    before = fingerprint(transform)
    for enhancing in (3, 4):
        transform({"label": label_map([0, 1, 2, enhancing])})
    assert fingerprint(transform) == before == fingerprint(kind("label"))


def test_given_label_is_not_changed():
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


def test_nesting_order_is_from_the_outermost_region_inwards():
    assert nesting_order(BRATS_REGIONS) == [(1, 2), (0, 1), (2, 3)]


@pytest.mark.parametrize(
    "regions",
    [{"a": [1], "b": [2]}, {"a": [1, 2, 3], "b": [1]}, {"a": [1, 2], "b": [1, 2]}, {"a": [1, 2], "b": [3]}],
)
def test_regions_that_are_not_nested_are_refused(regions):
    with pytest.raises(InputError, match="give nested regions, each with one class id more than the next"):
        nesting_order(regions)


# Label maps of regions


def test_label_map_comes_back_from_its_regions():
    label = label_map(np.random.default_rng(0).integers(0, 4, 500).tolist(), filename_or_obj="x")
    regions = split_regions(label)
    torch.testing.assert_close(regions.affine, AFFINE)
    merged = merge_regions(regions.as_tensor())
    assert torch.equal(merged, label.as_tensor())
    assert merged.dtype == torch.uint8


def test_voxel_belongs_to_a_region_if_its_logit_is_above_0():
    logits = torch.tensor([-1.0, 0.0, 1e-6]).repeat(3, 1)
    assert nested_label_map(lambda channel: logits[channel], 3).tolist() == [0, 0, 3]


def test_logits_are_asked_for_one_channel_at_a_time():
    asked = []
    nested_label_map(lambda channel: asked.append(channel) or torch.ones(4), 3)
    assert sorted(asked) == [0, 1, 2]


def test_label_map_has_the_class_ids_of_other_regions():
    regions = {"inner": [7], "outer": [7, 5]}
    logits = torch.tensor([[1.0, -1, -1], [1, 1, -1]])
    assert nested_label_map(lambda channel: logits[channel], 2, regions=regions).tolist() == [7, 5, 0]


def test_nested_regions_come_back_from_their_label_map():
    rng = np.random.default_rng(1)
    whole = torch.from_numpy(rng.random((1, 9, 8, 7)) < 0.6)
    core = whole & torch.from_numpy(rng.random((1, 9, 8, 7)) < 0.6)
    regions = torch.cat([core, whole, core & torch.from_numpy(rng.random((1, 9, 8, 7)) < 0.6)]).float()
    assert torch.equal(split_regions(merge_regions(regions)), regions)


@pytest.mark.parametrize(("core", "whole", "enhancing"), list(itertools.product([0, 1], repeat=3)))
def test_inner_region_wins_if_regions_are_not_nested(core, whole, enhancing):
    regions = torch.tensor([core, whole, enhancing], dtype=torch.float32).reshape(3, 1)
    read_again = split_regions(merge_regions(regions))[:, 0].tolist()
    assert read_again == [core or enhancing, whole or core or enhancing, enhancing]


def test_channels_that_are_not_the_regions_are_refused():
    with pytest.raises(InputError, match=r"2 channels for the regions \['TC', 'WT', 'ET'\]"):
        merge_regions(torch.zeros(2, 4))


def test_label_read_from_a_file_keeps_its_grid(tmp_path):
    array = np.array([0, 1, 2, 4], np.uint8).reshape(4, 1, 1)
    nib.save(nib.Nifti1Image(array, AFFINE.numpy()), tmp_path / "seg.nii.gz")
    label = LoadVolumed("label")({"label": str(tmp_path / "seg.nii.gz")})
    regions = BratsRegionsd("label")(label)["label"]
    torch.testing.assert_close(regions.affine, AFFINE)
    assert merge_regions(regions.as_tensor()).flatten().tolist() == [0, 1, 2, 3]
