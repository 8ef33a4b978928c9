import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from scripts.segvol.windows import cut, inside, published_windows, windows_around

WINDOW = (8, 16, 16)


def box(*numbers):
    return np.array(numbers)


@pytest.mark.parametrize(
    ("around", "shape"),
    [
        ((2, 3, 4, 5, 6, 7), (30, 40, 50)),
        ((0, 0, 0, 29, 39, 49), (30, 40, 50)),
        ((27, 37, 47, 29, 39, 49), (30, 40, 50)),
        ((0, 5, 5, 3, 20, 20), (4, 40, 17)),
        ((1, 1, 1, 1, 1, 1), (3, 5, 7)),
    ],
)
def test_windows_cover_the_box_and_stay_in_the_volume(around, shape):
    zoom = windows_around(box(*around), shape, WINDOW)
    covered = np.zeros(shape, dtype=bool)
    for start in zoom.starts:
        for first, n, size in zip(start, shape, WINDOW, strict=True):
            assert first == -((size - n) // 2) if n <= size else 0 <= first <= n - size
        covered[inside(start, WINDOW, zoom)[1]] = True
    assert covered[tuple(slice(a, b + 1) for a, b in zip(around[:3], around[3:], strict=True))].all()


def test_small_box_gets_one_window_on_the_grid_of_an_eighth_around_it():
    """So that a prompt that differs a little gets the same one."""
    for around in ((12, 20, 21, 14, 25, 26), (12, 20, 20, 14, 26, 26), (13, 21, 21, 14, 24, 26)):
        assert windows_around(box(*around), (30, 40, 50), WINDOW).starts == [(10, 16, 16)]


@pytest.mark.parametrize("extent", range(1, 9))
def test_box_that_fits_gets_one_window_wherever_it_lies(extent):
    for low in range(0, 30 - extent):
        zoom = windows_around(box(low, 0, 0, low + extent - 1, 3, 3), (30, 40, 50), WINDOW)
        assert len(zoom.starts) == 1


@pytest.mark.parametrize("around", [(4, 10, 10, 5, 20, 20), (2, 3, 3, 20, 36, 30), (0, 0, 0, 29, 39, 49)])
def test_published_windows_are_those_of_sliding_windows_over_the_region(around):
    """By MONAI, which pads a region that is smaller than a window on both sides."""
    shape, seen = (30, 40, 50), []
    zoom = published_windows(box(*around), shape, WINDOW)
    region = torch.zeros(1, 1, *(zoom.high - zoom.low + 1))
    pad = np.maximum(0, WINDOW - (zoom.high - zoom.low + 1)) // 2

    def predictor(patch, coordinates):
        seen.extend(tuple(int(part.start) for part in one[2:]) for one in coordinates)
        return patch

    sliding_window_inference(region, WINDOW, 1, predictor, overlap=0.5, mode="constant", with_coord=True)
    assert zoom.starts == [tuple(zoom.low - pad + start) for start in seen]


def test_region_of_the_published_code_is_widened_to_a_window_and_clipped():
    zoom = published_windows(box(4, 0, 20, 5, 9, 24), (30, 40, 50), WINDOW)
    assert zoom.low.tolist() == [1, 0, 15]  # by (8 - 2) // 2, (16 - 10) // 2, (16 - 5) // 2
    assert zoom.high.tolist() == [8, 12, 29]


def test_published_fault_leaves_prompts_of_a_padded_window_unshifted():
    """With the numbers that the specification gives for a region of 20 x 100 x 120 voxels."""
    shape, window = (20, 100, 120), (32, 256, 256)
    whole, prompt = box(0, 0, 0, 19, 99, 119), box(5, 30, 40, 9, 59, 79)
    published, ours = published_windows(whole, shape, window), windows_around(whole, shape, window)
    assert published.starts == ours.starts == [(-6, -78, -68)]
    assert (prompt - np.tile(published.shift, 2)).tolist() == [5, 30, 40, 9, 59, 79]
    assert (prompt - np.tile(ours.shift, 2)).tolist() == [11, 108, 108, 15, 137, 147]


def test_window_shows_the_volume_with_zeros_around_it():
    volume = torch.arange(1.0, 28).reshape(3, 3, 3)
    zoom = windows_around(box(0, 0, 0, 2, 2, 2), (3, 3, 3), (5, 5, 5))
    window = cut(volume, zoom.starts[0], (5, 5, 5), zoom)
    assert torch.equal(window, torch.nn.functional.pad(volume, [1] * 6))
