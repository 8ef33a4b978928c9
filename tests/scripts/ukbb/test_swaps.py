from itertools import permutations

import numpy as np
import pytest

from scripts.ukbb.archive import CHANNELS
from scripts.ukbb.stitching import Block
from scripts.ukbb.swaps import channel_signs, disagreement, exchanged, find_swaps, rim

PIXEL_MM = (4.0, 4.0)


def block(start, n=10, *, noise=4.0, seed=0):
    """A disc of water with a rim of fat."""
    x, y = np.meshgrid(np.arange(40) - 19.5, np.arange(40) - 19.5, indexing="ij")
    radius = np.hypot(x, y)[..., None] + np.zeros(n)
    fat, water = np.where(radius < 18, 40.0, 0), np.where(radius < 18, 300.0, 0)
    fat[(radius < 18) & (radius > 14)], water[(radius < 18) & (radius > 14)] = 500, 50
    rng = np.random.default_rng(seed + start)
    fat, water = (np.abs(part + rng.normal(0, noise, part.shape)) for part in (fat, water))
    values = {"fat": fat, "water": water, "in_phase": fat + water, "opposed_phase": np.abs(water - fat)}
    return Block((slice(0, 40), slice(0, 40), slice(start, start + n)), values)


def chain(*swapped, step=7):
    blocks = [block(step * n) for n in range(len(swapped))]
    return [exchanged(b) if s else b for b, s in zip(blocks, swapped, strict=True)]


@pytest.mark.parametrize("swapped", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 1, 0, 0), (1, 0, 0, 0, 0, 1)])
def test_fewest_stations_that_explain_the_neighbours(swapped):
    found = find_swaps(chain(*swapped), range(len(swapped), 0, -1), PIXEL_MM)
    assert found.swapped == [bool(s) for s in swapped]
    assert found.notes == []


@pytest.mark.parametrize("swapped", [(1, 0), (0, 1), (1, 1, 0, 0)])
def test_tie_is_decided_by_fat_below_the_skin(swapped):
    assert find_swaps(chain(*swapped), range(len(swapped), 0, -1), PIXEL_MM).swapped == [bool(s) for s in swapped]


def test_gap_divides_the_chain():
    blocks = [
        *chain(0, 1, 0),
        *[Block((*b.box[:2], slice(b.box[2].start + 60, b.box[2].stop + 60)), b.values) for b in chain(1, 0, 0)],
    ]
    assert find_swaps(blocks, range(6, 0, -1), PIXEL_MM).swapped == [False, True, False, True, False, False]


def test_lone_swapped_station_is_noted():
    found = find_swaps([exchanged(block(0))], [4], PIXEL_MM)
    assert found.swapped == [False]
    assert found.notes == ["stations 4: water lies below the skin; fat and water may be exchanged in all of them"]


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        ("in_phase", "opposed_phase", "station 2: in-phase and opposed-phase are exchanged"),
        ("fat", "in_phase", "station 2: fat and in-phase are exchanged"),
        ("water", "in_phase", "station 2: water and in-phase are exchanged"),
    ],
)
def test_other_exchanges_are_named_not_called_swaps(one, other, text):
    blocks = chain(0, 0, 0)
    values = blocks[1].values
    blocks[1] = Block(blocks[1].box, {**values, one: values[other], other: values[one]})
    found = find_swaps(blocks, [3, 2, 1], PIXEL_MM)
    assert found.swapped == [False] * 3
    assert text in found.notes


def test_arithmetic_does_not_tell_fat_from_water():
    """Which is why neighbours and the rim are needed."""
    for one in (block(0), exchanged(block(0))):
        assert find_swaps([one], [1], PIXEL_MM).residuals == [0]
    assert rim(block(0), PIXEL_MM) == pytest.approx(-rim(exchanged(block(0)), PIXEL_MM))
    assert rim(block(0), PIXEL_MM) > 0.7


def test_stations_apart_are_not_compared():
    assert disagreement(block(0), block(40)) is None
    assert disagreement(block(0), block(6)) is False
    assert disagreement(block(0), exchanged(block(6))) is True


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_every_wrong_order_of_channels_is_told(order):
    channels = np.stack([block(0).values[CHANNELS[n]] for n in order])
    assert bool(channel_signs(channels, PIXEL_MM)) == (order != (0, 1, 2, 3))
