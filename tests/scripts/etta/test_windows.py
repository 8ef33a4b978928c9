import numpy as np
import torch
from monai.inferers import SlidingWindowInferer

from scripts.etta.windows import choose, reference_windows
from scripts.inference.window_layout import WindowLayout
from tests.scripts.etta.tiny_network import INFERER


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
