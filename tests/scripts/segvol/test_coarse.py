import pytest
import torch
from torch.nn.functional import interpolate

from scripts.segvol.coarse import Coarse, quantized
from scripts.segvol.frames import box_of


@pytest.mark.parametrize(("aligned", "mode"), [(True, "nearest-exact"), (False, "nearest")])
@pytest.mark.parametrize("shape", [(20, 100, 120), (5, 9, 11), (8, 16, 16), (40, 3, 70)])
def test_values_are_those_of_torchs_nearest_voxel(shape, aligned, mode):
    logits = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = interpolate(logits[None, None], size=shape, mode=mode)[0, 0]
    coarse = Coarse(logits, shape, aligned=aligned)
    assert torch.equal(coarse.at((slice(None),) * 3), expected)
    assert torch.equal(coarse.at((slice(1, 3), slice(0, 2), slice(2, 9))), expected[1:3, 0:2, 2:9])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("shape", [(20, 100, 120), (5, 9, 11), (8, 16, 16), (40, 3, 70)])
@pytest.mark.parametrize("shown", [(slice(2, 4), slice(3, 9), slice(15, 16)), (slice(0, 8), slice(7, 8), slice(4, 5))])
def test_box_is_that_of_the_logits_in_the_volume(shape, aligned, shown):
    logits = torch.full((8, 16, 16), -1.0)
    logits[shown] = 1
    coarse = Coarse(logits, shape, aligned=aligned)
    expected = box_of(coarse.at((slice(None),) * 3) > 0)
    found = coarse.box()
    assert (found is None) == (expected is None)
    assert expected is None or found.tolist() == expected.tolist()


def test_half_belongs_to_the_structure():
    assert quantized(torch.tensor([0.0, -0.02, 0.02, 50, -50])).tolist() == [128, 126, 129, 255, 0]
