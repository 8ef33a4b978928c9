import numpy as np
import pytest

from scripts.ukbb.bias import bias_field
from tools.ukbb_archives import body

SHAPE, STEP_MM = (64, 48, 64), (8.0, 8.0, 12.0)


@pytest.fixture
def image():
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SHAPE[:2], STEP_MM[:2], strict=True)]
    points = np.stack(np.meshgrid(*axes, -np.arange(SHAPE[2])[::-1] * STEP_MM[2], indexing="ij"))
    fat, water = body(points)
    return points, fat + water


def test_field_from_front_to_back_is_found(image):
    """That of the coils in front and back; the standard deviation that remains is less than a third."""
    points, in_phase = image
    field = np.exp(points[1] / 300)
    inside = in_phase > 200
    found = bias_field((in_phase * field).astype(np.float32), STEP_MM)
    assert found.shape == SHAPE
    assert found.dtype == np.float32
    remaining, before = (np.std(part[inside]) / np.mean(part[inside]) for part in (found / field, 1 / field))
    assert remaining < before / 3


def test_same_image_gives_the_same_field(image):
    in_phase = image[1].astype(np.float32)
    np.testing.assert_array_equal(bias_field(in_phase, STEP_MM), bias_field(in_phase, STEP_MM))
