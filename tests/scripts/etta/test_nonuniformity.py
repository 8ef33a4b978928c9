import numpy as np
import pytest
import torch

from scripts.etta.input_candidates import Intensities
from scripts.etta.nonuniformity import OrganSamples

SIZE = (24, 20, 16)
ORGANS = torch.tensor([0.2, 0.3, 0.5, 0.7])
UNIT = [Intensities(0.0, 1.0)]


def organs(seed=0):
    """Classes in blocks of 4 voxels, and their logits."""
    cells = torch.randint(0, 4, [n // 4 for n in SIZE], generator=torch.Generator().manual_seed(seed))
    classes = cells.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return classes, 20 * torch.nn.functional.one_hot(classes, 4).movedim(-1, 0)[None].float()


def gain(along):
    """A gain of 0.8 to 1.2 along an axis."""
    return torch.linspace(0.8, 1.2, SIZE[along]).reshape([-1 if axis == along else 1 for axis in range(3)])


def samples(image, logits, windows=None, seen=UNIT):
    found = OrganSamples(SIZE, seen)
    for window in windows or [tuple(slice(0, n) for n in SIZE)]:
        found.add(image[(..., *window)], logits[(..., *window)], window)
    return found


@pytest.mark.parametrize("along", [0, 1, 2])
def test_gain_along_an_axis_is_measured(along):
    classes, logits = organs()
    image = (ORGANS[classes] * gain(along))[None, None]
    assert samples(image, logits).nonuniformity(0) == pytest.approx(np.log(1.2 / 0.8), abs=0.03)


def test_uniform_organs_have_none_whatever_their_intensities_and_noise():
    classes, logits = organs()
    noise = 0.02 * torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    for exponent in (0.6, 1, 1.7):
        assert samples((ORGANS[classes] ** exponent + noise)[None, None], logits).nonuniformity(0) < 0.1


def test_some_wrong_voxels_do_not_count():
    classes, logits = organs()
    image = ORGANS[classes]
    image[:3, :10, :10] = 0.95
    assert samples(image[None, None], logits).nonuniformity(0) < 0.05


def test_windows_count_at_their_place():
    classes, logits = organs()
    image = (ORGANS[classes] * gain(0))[None, None]
    halves = [(slice(a, b), slice(0, 20), slice(0, 16)) for a, b in ((0, 12), (12, 24))]
    whole, parts = samples(image, logits), samples(image, logits, halves)
    assert parts.nonuniformity(0) == pytest.approx(whole.nonuniformity(0), rel=1e-6)


def test_each_channel_and_its_range_count_by_themselves():
    classes, logits = organs()
    plain, drifting = ORGANS[classes], ORGANS[classes] * gain(2)
    image = torch.stack([plain, 300 * drifting - 100])[None]
    found = samples(image, logits, seen=[*UNIT, Intensities(-100.0, 200.0)])
    assert found.nonuniformity(0) < 0.02
    assert found.nonuniformity(1) == pytest.approx(np.log(1.2 / 0.8), abs=0.03)


def test_background_uncertain_clipped_and_too_few_voxels_do_not_count():
    classes, logits = organs()
    image = ORGANS[classes][None, None] * gain(0)
    assert OrganSamples(SIZE, UNIT).nonuniformity(0) == 0
    assert samples(image, logits / 40).nonuniformity(0) == 0  # no class above 0.8
    assert samples(image * 0 + 1, logits).nonuniformity(0) == 0
    few = logits.clone()
    few[:, 0, 2:] = 99
    assert samples(image, few).nonuniformity(0) == 0
