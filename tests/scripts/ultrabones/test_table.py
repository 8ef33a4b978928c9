import numpy as np
import pytest

from scripts.ultrabones.table import surface_size


def test_length_is_that_of_the_line_through_the_middle_of_the_band():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[8:11, 5:25] = 1
    assert surface_size(mask, (0.5, 0.2)) == pytest.approx((19 * 0.2, 9.5 * 0.5))


def test_gaps_are_not_part_of_the_length():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[4, 0:5] = mask[4, 20:25] = 1
    assert surface_size(mask, (1, 1)) == pytest.approx((8, 4.5))


def test_single_column_has_no_length():
    assert surface_size(np.eye(3)[:, :1], (1, 1)) == (0, 0.5)
