import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.common.label_maps import as_label_array, count_voxels, renumber

IDS = np.array([[[0, 3], [1, 1]], [[0, 255], [7, 3]]])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, lambda a: MetaTensor(torch.from_numpy(a))])
def test_class_ids_of_any_dtype_become_integers(dtype, make):
    if dtype == "uint16" and make is not np.asarray and not hasattr(torch, "uint16"):
        pytest.skip("this torch has no uint16")
    array = IDS.astype(dtype)
    labels = as_label_array(make(array), name="label")
    assert type(labels) is np.ndarray
    assert labels.dtype.kind in "iu"
    np.testing.assert_array_equal(labels, array)


def test_integers_are_not_copied():
    tensor = torch.zeros(2, 3, 4, dtype=torch.uint8)
    labels = as_label_array(tensor, name="label")
    tensor[0, 0, 0] = 5
    assert labels[0, 0, 0] == 5


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (-0.25, "-0.25"), (np.nan, "nan"), (np.inf, "inf")])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_values_between_class_ids_are_refused(value, shown):
    volume = np.zeros((2, 3, 4), np.float32)
    volume[1, 2, 3] = value
    message = f"ct.nii holds {shown}, not a class id: resample label maps with nearest neighbour."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        as_label_array(volume, name="ct.nii")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_voxels_are_counted_as_numpy_does(dtype, order):
    label_map = np.asarray(np.random.default_rng(0).integers(0, 9, (5, 6, 7)), dtype, order=order)
    np.testing.assert_array_equal(count_voxels(label_map), np.bincount(label_map.ravel()))
    assert count_voxels(label_map).dtype == np.int64


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 2)])
def test_empty_volume_has_no_voxels(shape):
    assert count_voxels(np.zeros(shape, np.uint8)).sum() == 0


def test_class_id_whose_counts_would_take_gigabytes_is_refused():
    with pytest.raises(InputError, match=r"^the label map holds 1073741824: class ids end at 65535, renumber it\.$"):
        count_voxels(np.full((2, 2, 2), 2**30))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e9])
def test_value_that_no_class_id_has_is_refused_without_a_warning(value):
    with pytest.raises(InputError, match=r"^label holds .*, not a class id"):
        as_label_array(np.array([1, value]), name="label")


def test_negative_class_id_is_refused():
    with pytest.raises(InputError, match=r"^the label map holds -3: class ids start at 0, renumber it\.$"):
        count_voxels(np.full((2, 2, 2), -3, np.int16))


def test_class_ids_are_replaced_all_at_once():
    label = torch.tensor([0, 1, 2, 3, 4])
    assert renumber(label, {1: 2, 2: 1, 3: 4, 4: 3}).tolist() == [0, 2, 1, 4, 3]
    assert renumber(label, {1: 2, 2: 3, 3: 1}).tolist() == [0, 2, 3, 1, 4]
    assert label.tolist() == [0, 1, 2, 3, 4]


def test_label_map_without_changes_is_not_copied():
    label = torch.tensor([0, 1, 2])
    assert renumber(label, {}) is label
    assert renumber(label, {1: 1}) is label


def test_renumbering_keeps_dtype_and_metadata():
    label = MetaTensor(torch.tensor([[0, 4]], dtype=torch.uint8), meta={"case": "a"})
    changed = renumber(label, {4: 3})
    assert changed.dtype == torch.uint8
    assert changed.meta["case"] == "a"
    assert changed.tolist() == [[0, 3]]
