import numpy as np
import pandas as pd
import pytest

from tools.ultrasound_phantom import FIELD_MM
from tools.ultrasound_sweep import RADIUS_MM, Cylinder, write_sweep


def test_outline_is_where_sound_meets_the_bone():
    """Its axis runs through the image; the middle of the image is straight above it."""
    image_to_world = np.eye(4)
    image_to_world[0, 3] = -FIELD_MM[1] / 2
    bone = Cylinder(np.array([0.0, 30.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    outline = bone.outline(image_to_world, 1001)
    x_mm = (np.arange(1001) + 0.5) * FIELD_MM[1] / 1001 - FIELD_MM[1] / 2
    seen = np.flatnonzero(~np.isnan(outline.depth_mm))
    assert outline.depth_mm[500] == pytest.approx(30 - RADIUS_MM)
    np.testing.assert_allclose(outline.depth_mm[seen], 30 - np.sqrt(RADIUS_MM**2 - x_mm[seen] ** 2))
    assert x_mm[seen[-1]] == pytest.approx(RADIUS_MM * np.sin(np.radians(60)), abs=0.1)
    points = np.column_stack([x_mm[seen], outline.depth_mm[seen], np.zeros(len(seen))])
    np.testing.assert_allclose(bone.distances_mm(points), 0, atol=1e-9)


def test_sweep_is_the_same_for_the_same_seed(tmp_path):
    for name in "ab":
        write_sweep(tmp_path / name, frames=2, size=(40, 50), seed=3)
    tables = [pd.read_csv(tmp_path / name / "tracking.csv") for name in "ab"]
    assert tables[0].equals(tables[1])
    assert tables[0]["timestamp"].tolist() == [1000, 1050]
    first, second = (sorted((tmp_path / name).rglob("*.png")) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(first) == 4
