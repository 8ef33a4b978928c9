import csv
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents

from scripts.common.grids import GridArray
from scripts.universeg.sizes import SizesSaver, class_sizes


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_area_of_a_flat_image_is_that_of_its_plane(axis):
    spacing = np.roll([5.0, 2.0, 3.0], axis)  # the slice is 5 mm thick
    shape = np.roll([1, 4, 6], axis)
    sizes = class_sizes(GridArray(np.ones(shape, dtype=np.uint8), np.diag([*spacing, 1])))[1]
    assert sizes == {"pixels": 24, "area_mm2": pytest.approx(24 * 6), "volume_ml": pytest.approx(math.nan, nan_ok=True)}


def test_picture_has_no_area_in_mm():
    sizes = class_sizes(GridArray(np.ones((4, 5, 1), dtype=np.uint8), np.eye(4)), is_scaled=False)[1]
    assert sizes["pixels"] == 20
    assert math.isnan(sizes["area_mm2"])


def test_volume_has_a_volume():
    sizes = class_sizes(GridArray(np.ones((10, 10, 10), dtype=np.uint8), np.diag([1.0, 2, 3, 1])))[1]
    assert sizes["volume_ml"] == pytest.approx(6)
    assert math.isnan(sizes["area_mm2"])


def test_table_has_a_row_per_case_and_class(tmp_path):
    label = torch.zeros(1, 4, 5, 1)
    label[0, 0] = 2

    def step(engine, _):
        image = MetaTensor(torch.zeros(1, 4, 5, 1), meta={"filename_or_obj": "p1.png"})
        engine.state.batch = [{"case": "p1", "image": image}]
        engine.state.output = [{"pred": MetaTensor(label, affine=torch.eye(4))}]
        engine.fire_event(IterationEvents.MODEL_COMPLETED)

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    SizesSaver(tmp_path, {1: "cell", 2: "nucleus"}).attach(engine)
    engine.run([0])
    rows = list(csv.reader((tmp_path / "sizes.csv").open()))
    assert rows[0] == ["case", "class", "pixels", "area_mm2", "volume_ml"]
    assert rows[1:] == [["p1", "cell", "0", "", ""], ["p1", "nucleus", "5", "", ""]]
