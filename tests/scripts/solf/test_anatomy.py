import numpy as np
import pandas as pd
import pytest

from scripts.common.organs import ORGANS
from scripts.solf.anatomy import anatomy_columns
from scripts.solf.features import shape_columns


def body(affine=None):
    label = np.zeros((20, 10, 10), np.uint8)
    label[:, 1:9, 1:9] = 66
    label[14:18, 4:6, 4:6] = 2
    label[2:4, 4:6, 4:6] = 3
    affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
    shapes = shape_columns(label, affine)
    return pd.DataFrame(shapes | anatomy_columns(shapes, ORGANS)).set_index("label")


def test_asymmetry_is_the_logarithm_of_the_volumes_ratio():
    table = body()
    assert table.loc[2, "asymmetry"] == pytest.approx(np.log(2))
    assert table.loc[3, "asymmetry"] == pytest.approx(-np.log(2))
    assert np.isnan(table.loc[66, "asymmetry"])


def test_offsets_are_from_the_bodys_centroid_in_cube_roots_of_its_volume():
    table = body()
    assert table.loc[2, "offset_x"] == pytest.approx((15.5 - 9.5) * 2 / np.cbrt(20 * 8 * 8 * 12), rel=1e-9)
    assert table.loc[[2, 3, 66], ["offset_y", "offset_z"]].to_numpy() == pytest.approx(0, abs=1e-9)


def test_offsets_do_not_depend_on_where_the_scanner_put_the_patient():
    moved = np.diag([2.0, 2.0, 3.0, 1.0])
    moved[:3, 3] = [300, -200, 1000]
    assert body(moved)["offset_x"].tolist() == pytest.approx(body()["offset_x"].tolist(), abs=1e-9)


def test_a_body_twice_the_size_has_the_same_anatomy():
    columns = ["asymmetry", "offset_x", "offset_y", "offset_z"]
    twice = body(np.diag([4.0, 4.0, 6.0, 1.0]))[columns].to_numpy()
    assert twice == pytest.approx(body()[columns].to_numpy(), abs=1e-9, nan_ok=True)


def test_swapping_sides_swaps_the_offsets():
    mirrored = body(np.diag([-2.0, 2.0, 3.0, 1.0]))
    assert mirrored.loc[2, "offset_x"] == pytest.approx(-body().loc[2, "offset_x"])
