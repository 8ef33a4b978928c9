import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from scripts.brats.regions import nested_label_map
from scripts.data.transforms import Spacingd
from scripts.inference.axis_maps import way_back
from scripts.inference.tiles import contenders, restore, spans, winning_classes


def maps_and_logits(shape, pixdim, channels, *, seed=0, smooth=2):
    """Return the way back, and smooth logits of which many classes win somewhere."""
    image = Spacingd("image", pixdim=pixdim)({"image": MetaTensor(torch.zeros(1, *shape), affine=torch.eye(4))})[
        "image"
    ]
    noise = np.random.default_rng(seed).normal(size=(channels, *image.shape[1:])).astype(np.float32)
    return way_back(image), torch.from_numpy(30 * ndimage.gaussian_filter(noise, (0, smooth, smooth, smooth)))


def all_interpolated(logits, maps):
    x, y, z = maps.weights
    return torch.einsum("cxyz,ax,by,dz->cabd", logits.double(), x, y, z)


def check(labels, logits, maps, label_map=lambda values: values.argmax(0)):
    values = all_interpolated(logits, maps)
    best = values.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-5) & (values.abs() > 1e-5).all(0)
    assert clear.float().mean() > 0.99
    np.testing.assert_array_equal(labels[clear], label_map(values)[clear])


@pytest.mark.parametrize("pixdim", [(2, 2, 2), (0.8, 1.5, 3.0), (1.0, 1.1, 4.0)])
@pytest.mark.parametrize("channels", [1, 2, 30])
def test_labels_are_those_of_interpolating_all_classes(pixdim, channels):
    maps, logits = maps_and_logits((70, 45, 40), pixdim, channels)
    labels = restore(logits, maps)
    if channels == 1:
        assert not labels.any()
    else:
        check(labels, logits, maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_may_be_of_any_floating_type_and_are_not_changed(dtype):
    maps, logits = maps_and_logits((40, 35, 33), (2, 2, 2), 9)
    logits = logits.to(dtype)
    before = logits.clone()
    check(restore(logits, maps), logits, maps)
    assert torch.equal(logits, before)


def test_regions_are_decided_by_the_sign():
    maps, logits = maps_and_logits((50, 40, 45), (2, 2, 2), 3, smooth=5)
    logits[1] += 0.5
    labels = restore(logits, maps, nested_label_map)
    check(labels, logits, maps, lambda values: nested_label_map(values.__getitem__, 3))
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}


def test_regions_that_are_the_same_everywhere_fill_the_volume():
    maps, logits = maps_and_logits((40, 9, 9), (2, 2, 2), 3)
    logits[:] = torch.tensor([1.0, 2.0, -1.0])[:, None, None, None]
    assert restore(logits, maps, nested_label_map).unique().tolist() == [1]


def test_class_that_wins_only_between_the_voxels_is_found():
    logits = torch.tensor([[10.0, -10.0], [-10.0, 10.0], [1.0, 1.0], [-1.0, -1.0]])[:, :, None, None]
    assert contenders(logits.clone()) == [0, 1, 2]


def test_class_below_the_mean_of_the_winners_is_left_out():
    logits = torch.randn(50, 9, 9, 9)
    logits[:2] = 20
    logits[0, 4:] -= 8
    logits[1, :4] -= 8
    assert contenders(logits) == [0, 1]


def test_infinite_logits_change_no_voxel_that_does_not_touch_them():
    maps, logits = maps_and_logits((20, 18, 16), (2, 2, 2), 4)
    clean = restore(logits, maps)
    logits[2, 0, 0, 0], logits[1, 0, 0, 0] = float("inf"), float("nan")
    labels = restore(logits, maps)
    assert labels[0, 0, 0] == 2
    np.testing.assert_array_equal(labels[4:], clean[4:])


@pytest.mark.parametrize("threads", [1, 3])
def test_labels_and_the_number_of_threads_stay_the_same(threads):
    maps, logits = maps_and_logits((70, 40, 40), (2, 2, 2), 8)
    expected, before = restore(logits, maps), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(restore(logits, maps), expected)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_inference_mode_is_that_of_the_caller():
    with torch.inference_mode():
        maps, logits = maps_and_logits((40, 20, 20), (2, 2, 2), 3)
        labels = restore(logits + 0, maps)
    check(labels, logits, maps)


def test_runs_cover_the_voxels_inside_the_crop_once_and_are_small():
    weights = torch.zeros(100, 400, dtype=torch.float64)
    weights[torch.arange(5, 95), torch.arange(5, 95) * 4] = 1  # four of the network's voxels to one
    runs = spans(weights, 32)
    assert [row for run in runs for row in range(run.voxels.start, run.voxels.stop)] == list(range(5, 95))
    assert max(run.source.stop - run.source.start for run in runs) <= 33


def test_winning_class_is_the_argmax_and_the_first_of_equal_logits():
    logits = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (6, 5, 4, 3))).float()
    classes = winning_classes(lambda channel: logits[channel].clone(), len(logits))
    assert classes.dtype == torch.uint8
    np.testing.assert_array_equal(classes, logits.numpy().argmax(axis=0))


def test_logits_are_requested_one_channel_at_a_time_in_order():
    requested = []

    def logits_of(channel):
        requested.append(channel)
        return torch.zeros(1, 2, 2, 2)

    winning_classes(logits_of, 4)
    assert requested == [0, 1, 2, 3]
