import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from scripts.inference.window_layout import WindowLayout


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
