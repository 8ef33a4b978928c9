import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from scripts.common.errors import InputError
from scripts.etta.windows import WindowLayout, choose, reference_windows
from tests.scripts.etta.tiny_network import INFERER


@pytest.mark.parametrize("size", [(8, 8, 8), (12, 9, 20), (5, 8, 17), (31, 16, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, (0.5, 0.6, 0.1)])
def test_windows_are_those_that_the_inferer_passes_to_the_network(size, overlap):
    x = torch.arange(np.prod(size), dtype=torch.float32).reshape(1, 1, *size) + 1
    inferer = SlidingWindowInferer(roi_size=(8, -1, 8), overlap=overlap, padding_mode="replicate")
    seen = []
    inferer(x, lambda window: seen.append(window.clone()) or window)
    layout = WindowLayout.of(inferer, size)
    padded = layout.padded(x)
    ours = [padded[(..., *window)] for window in layout.windows(padded.shape[2:])]
    assert len(ours) == len(seen)
    assert all(map(torch.equal, ours, seen))


def test_padding_with_a_constant_is_that_of_the_inferer():
    seen = []
    inferer = SlidingWindowInferer(roi_size=8, padding_mode="constant", cval=-3.0)
    inferer(torch.zeros(1, 1, 5, 8, 6), lambda window: seen.append(window.clone()) or window)
    assert torch.equal(WindowLayout.of(inferer, (5, 8, 6)).padded(torch.zeros(1, 1, 5, 8, 6)), seen[0])


def test_image_is_one_window_for_other_inferers():
    layout = WindowLayout.of(SimpleInferer(), (12, 9, 20))
    assert layout.windows((12, 9, 20)) == [(slice(0, 12), slice(0, 9), slice(0, 20))]


def test_inferer_that_passes_coordinates_is_refused():
    with pytest.raises(InputError, match="the inferer has with_coord=True: set it to False"):
        WindowLayout.of(SlidingWindowInferer(8, with_coord=True), (8, 8, 8))


def test_reference_windows_cover_the_image_side_by_side():
    covered = torch.zeros(1, 1, 8, 16, 16)
    for window in reference_windows(WindowLayout.of(INFERER, covered.shape[2:]), covered):
        covered[(..., *window)] += 1
    assert (covered == 1).all()


def test_reference_windows_leave_out_air_if_there_are_too_many():
    x = torch.zeros(1, 1, 32, 32, 32)
    x[..., 16:] = torch.rand(1, 1, 32, 32, 16)
    inferer = SlidingWindowInferer(roi_size=8, overlap=0.0)
    windows = reference_windows(WindowLayout.of(inferer, x.shape[2:]), x)
    assert len(windows) == 12
    assert all(window[2].start >= 16 for window in windows)


def test_windows_with_foreground_are_drawn_first_one_of_each_stratum():
    entropy, foreground = [0.9, 0.1, 0.2, 0.3, 0.4, 0.8], [0, 0.1, 0.1, 0.1, 0.1, 0]
    for seed in range(20):
        drawn = choose(entropy, foreground, count=2, generator=np.random.default_rng(seed))
        assert drawn[0] in (4, 3)
        assert drawn[1] in (2, 1)
    assert len(set(choose(entropy, foreground, count=9, generator=np.random.default_rng(0)))) == 6
