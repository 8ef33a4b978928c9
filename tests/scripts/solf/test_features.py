import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage as ndi
from skimage.measure import euler_number, marching_cubes

from scripts.common.errors import InputError
from scripts.solf import features
from scripts.solf.features import label_shape_features

SPACINGS_MM = [(1.0, 1.0, 1.0), (0.8, 2.5, 5.0)]
PLACE = ["centroid_x_mm", "centroid_y_mm", "centroid_z_mm", *(f"{a}_{end}" for end in ("start", "stop") for a in "ijk")]
PLACE += [f"fov_{axis}_{end}_mm" for axis in "xyz" for end in ("min", "max")]
# IBSI reference manual, digital phantom: value and tolerance
IBSI = {
    "volume_mm3": (592, 4),
    "mesh_volume_mm3": (556, 4),
    "surface_area_mm2": (388, 3),
    "sphericity": (0.843, 0.005),
    "major_axis_mm": (11.4, 0.1),
    "minor_axis_mm": (9.31, 0.06),
    "least_axis_mm": (8.54, 0.05),
    "elongation": (0.816, 0.005),
    "flatness": (0.749, 0.005),
}


def rotation(rng):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def grid(spacing_mm=(1, 1, 1), *, turned=None, origin_mm=(0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turned is None else turned) @ np.diag(spacing_mm)
    affine[:3, 3] = origin_mm
    return affine


def blobs(rng, *, labels, shape=(22, 20, 18), smooth=1.2):
    """Random labels that touch each other, the border and themselves at edges and corners."""
    noise = ndi.gaussian_filter(rng.normal(size=(labels + 1, *shape)), (0, smooth, smooth, smooth))
    return noise.argmax(0).astype(np.uint8)


def ball(radius):
    return sum(axis**2 for axis in np.ogrid[[slice(-radius - 1, radius + 2)] * 3]) <= radius**2


def mesh_of(mask, affine):
    """Area and volume of scikit-image's mesh, in mm."""
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, method="lorensen")
    corners = (vertices.astype(float) @ affine[:3, :3].T)[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    return area, abs(np.linalg.det(corners).sum()) / 6


def test_ibsi_digital_phantom_within_its_tolerances():
    mask = np.ones((4, 4, 5), np.uint8)  # z, y, x
    mask[1, 1, 0] = mask[1, 2, 2] = 0
    mask[3, 2:, 3:] = 0
    row = label_shape_features(mask, grid((2, 2, 2))).iloc[0]
    for name, (value, tolerance) in IBSI.items():
        assert abs(row[name] - value) <= tolerance, name
    assert row.voxel_count == 74


def test_surface_equals_scikit_image_on_200_random_blobs():
    rng = np.random.default_rng(0)
    measured = 0
    for case in range(20):
        affine = grid(rng.uniform(0.5, 4, 3), turned=rotation(rng), origin_mm=rng.normal(0, 100, 3))
        label = blobs(rng, labels=10, smooth=0.4 if case % 4 == 0 else 1.2)
        for row in label_shape_features(label, affine).itertuples():
            area, volume = mesh_of(label == row.label, affine)
            assert row.surface_area_mm2 == pytest.approx(area, rel=1e-4)
            assert row.mesh_volume_mm3 == pytest.approx(volume, rel=1e-4)
            measured += 1
    assert measured == 200


def test_moments_and_box_equal_plain_numpy_on_an_oblique_grid():
    rng = np.random.default_rng(1)
    label, affine = blobs(rng, labels=6), grid((0.8, 2.5, 5), turned=rotation(rng), origin_mm=(-90, 40, 700))
    for row in label_shape_features(label, affine).itertuples():
        indices = np.argwhere(label == row.label)
        points_mm = indices @ affine[:3, :3].T + affine[:3, 3]
        least, minor, major = np.linalg.eigvalsh(np.cov(points_mm.T))
        np.testing.assert_allclose((row.centroid_x_mm, row.centroid_y_mm, row.centroid_z_mm), points_mm.mean(0))
        np.testing.assert_allclose((row.major_axis_mm, row.least_axis_mm), 4 * np.sqrt([major, least]))
        assert row.eccentricity == pytest.approx(np.sqrt(1 - least / major))
        assert (row.elongation, row.flatness) == pytest.approx((np.sqrt(minor / major), np.sqrt(least / major)))
        assert (row.i_start, row.j_start, row.k_start) == tuple(indices.min(0))
        assert (row.i_stop, row.j_stop, row.k_stop) == tuple(indices.max(0) + 1)
        assert row.voxel_count == len(indices)
        assert row.volume_mm3 == pytest.approx(len(indices) * 10)


@pytest.mark.parametrize("smooth", [0.01, 0.4, 0.8, 1.5])
@pytest.mark.parametrize("labels", [1, 3, 12])
def test_components_equal_scipy_with_26_neighbours(labels, smooth):
    label = blobs(np.random.default_rng(labels), labels=labels, shape=(17, 23, 29), smooth=smooth)
    for row in label_shape_features(label, np.eye(4)).itertuples():
        assert row.components == ndi.label(label == row.label, np.ones((3, 3, 3)))[1]


@pytest.mark.parametrize("smooth", [0.01, 0.4, 0.8, 1.5])
@pytest.mark.parametrize("labels", [1, 3, 12])
def test_euler_number_equals_scikit_image_with_26_neighbours(labels, smooth):
    label = blobs(np.random.default_rng(labels), labels=labels, shape=(17, 23, 29), smooth=smooth)
    for row in label_shape_features(label, np.eye(4)).itertuples():
        assert row.euler_number == euler_number(label == row.label, connectivity=3)


@pytest.mark.parametrize(("holes", "expected"), [([], 1), (["tunnel"], 0), (["cavity"], 2), (["tunnel", "cavity"], 1)])
def test_euler_number_is_components_less_tunnels_plus_cavities(holes, expected):
    label = np.zeros((16, 12, 14), np.uint8)
    label[0:14, 2:10, 2:12] = 1
    if "tunnel" in holes:
        label[3, :, 5] = 0
    if "cavity" in holes:
        label[9:11, 5:7, 6:8] = 0
        label[9, 5, 6] = 2  # another label in it changes nothing
    row = label_shape_features(label, np.eye(4)).iloc[0]
    assert (row.components, row.euler_number) == (1, expected)


def test_rods_joined_only_in_the_last_slice_are_one_component():
    rods = np.zeros((9, 9, 9), np.uint8)
    rods[:, ::2, ::2] = 1
    assert label_shape_features(rods, np.eye(4)).components[0] == 25
    rods[-1] = 1
    assert label_shape_features(rods, np.eye(4)).components[0] == 1


def test_balls_come_near_the_sphere():
    for radius in (3, 6, 12, 24, 48):
        row = label_shape_features(ball(radius).astype(np.uint8), np.eye(4)).iloc[0]
        assert row.mesh_volume_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.2 / radius)
        assert row.eccentricity == pytest.approx(0, abs=1e-6)
        assert row.elongation == row.flatness == pytest.approx(1)
        assert row.major_axis_mm == pytest.approx(4 * radius / np.sqrt(5), rel=0.06)
    assert row.sphericity == pytest.approx(0.92, abs=0.005)  # a mesh of a binary ball keeps steps: 8 % more area


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 5), (6, 4, 3)])
def test_boxes_equal_the_analytic_values(size, spacing_mm):
    label = np.zeros((8, 8, 8), np.uint8)
    label[tuple(slice(1, 1 + n) for n in size)] = 7
    row = label_shape_features(label, grid(spacing_mm)).iloc[0]
    (a, b, c), (x, y, z) = np.subtract(size, 1), spacing_mm
    faces = 2 * (a * b * x * y + b * c * y * z + a * c * x * z)
    bevels = 2 * (a * x * np.hypot(y, z) + b * y * np.hypot(x, z) + c * z * np.hypot(x, y))
    assert row.surface_area_mm2 == pytest.approx(faces + bevels + np.linalg.norm((x * y, y * z, x * z)))
    cut = (a + b + c) / 2 + 8 * (1 / 8 - 1 / 48)
    assert row.mesh_volume_mm3 == pytest.approx((np.prod(size) - cut) * np.prod(spacing_mm))
    variances = (np.square(size) - 1) / 12 * np.square(spacing_mm) * np.prod(size) / max(np.prod(size) - 1, 1)
    axes = row[["least_axis_mm", "minor_axis_mm", "major_axis_mm"]].astype(float)
    np.testing.assert_allclose(axes, 4 * np.sqrt(np.sort(variances)), atol=1e-6)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_mirrored_and_turned_copies_have_the_same_features(spacing_mm):
    rng = np.random.default_rng(2)
    label = blobs(rng, labels=4)
    expected = label_shape_features(label, grid(spacing_mm)).drop(columns=PLACE)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            copy = label.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
            affine = grid(np.take(spacing_mm, order) * flips, turned=rotation(rng), origin_mm=(5, 6, 7))
            found = label_shape_features(copy, affine).drop(columns=PLACE)
            pd.testing.assert_frame_equal(found, expected, rtol=1e-9)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "u4", "i8", "u8", ">u2", ">i4"])
def test_type_and_memory_order_change_no_bit(dtype, order, spacing_mm):
    label = blobs(np.random.default_rng(3), labels=5)
    expected = label_shape_features(label, grid(spacing_mm))
    given = np.array(label, dtype=dtype, order=order)
    given.flags.writeable = False
    pd.testing.assert_frame_equal(label_shape_features(given, grid(spacing_mm)), expected, check_exact=True)


def test_a_view_with_gaps_and_a_bool_mask():
    label = blobs(np.random.default_rng(4), labels=1)
    expected = label_shape_features(label[::2, 3:, ::-1].copy(), np.eye(4))
    view = label[::2, 3:, ::-1]
    pd.testing.assert_frame_equal(label_shape_features(view, np.eye(4)), expected, check_exact=True)
    pd.testing.assert_frame_equal(label_shape_features(view == 1, np.eye(4)), expected, check_exact=True)


def test_touching_labels_are_measured_as_if_alone():
    label = blobs(np.random.default_rng(5), labels=6)
    together = label_shape_features(label, np.eye(4)).drop(columns="normalized_volume")
    for index, row in together.iterrows():
        alone = label_shape_features(np.where(label == row.label, label, 0), np.eye(4))
        pd.testing.assert_frame_equal(alone[together.columns], together.loc[[index]].reset_index(drop=True))


def test_features_do_not_depend_on_the_place_in_the_volume():
    label = np.zeros((9, 9, 900), np.uint16)
    label[2:6, 3:6, 1:4] = label[2:6, 3:6, 880:883] = 65535
    label[2:6, 3:6, 880:883] = 300
    table = label_shape_features(label, grid((1, 2, 3))).drop(columns=["label", *PLACE])
    pd.testing.assert_series_equal(table.loc[0], table.loc[1], check_names=False, check_exact=True)


@pytest.mark.parametrize("shape", [(4, 4, 4), (0, 4, 4)])
def test_empty_map_has_the_columns_and_no_rows(shape):
    empty = label_shape_features(np.zeros(shape, np.uint8), np.eye(4))
    full = label_shape_features(np.ones((3, 3, 3), np.uint8), np.eye(4))
    assert len(empty) == 0
    pd.testing.assert_series_equal(empty.dtypes, full.dtypes)


def test_single_voxel_has_no_direction():
    label = np.zeros((3, 3, 3), np.uint8)
    label[1, 1, 1] = 2
    row = label_shape_features(label, grid((2, 2, 2))).iloc[0]
    assert row[["eccentricity", "elongation", "flatness"]].isna().all()
    assert (row[["major_axis_mm", "minor_axis_mm", "least_axis_mm"]] == 0).all()
    assert (row.voxel_count, row.components, row.touches_border) == (1, 1, False)
    assert row.surface_area_mm2 == pytest.approx(4 * np.sqrt(3))
    assert row.mesh_volume_mm3 == pytest.approx(8 / 6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_label_at_the_border_is_closed_there_and_marked(axis, end):
    label = np.zeros((6, 6, 6), np.uint8)
    label[2:4, 2:4, 2:4] = 1
    inside = label_shape_features(label, np.eye(4)).iloc[0]
    shifted = label_shape_features(np.roll(label, -2 if end == 0 else 2, axis), np.eye(4)).iloc[0]
    assert (inside.touches_border, shifted.touches_border) == (False, True)
    assert shifted.surface_area_mm2 == inside.surface_area_mm2


def test_field_of_view_is_the_box_around_the_voxel_centres():
    row = label_shape_features(np.ones((3, 4, 5), np.uint8), grid((2, 3, 4), origin_mm=(10, 20, 30))).iloc[0]
    assert [row[f"fov_{axis}_min_mm"] for axis in "xyz"] == [10, 20, 30]
    assert [row[f"fov_{axis}_max_mm"] for axis in "xyz"] == [14, 29, 46]
    mirrored = np.diag([-2.0, 3.0, 4.0, 1.0])
    row = label_shape_features(np.ones((3, 4, 5), np.uint8), mirrored).iloc[0]
    assert (row["fov_x_min_mm"], row["fov_x_max_mm"]) == (-4, 0)


def test_measuring_imports_no_pandas():
    code = "import sys, scripts.solf.anatomy, scripts.solf.features, scripts.solf.thresholds, scripts.solf.fitting"
    code += "; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3], check=True)


def test_normalized_volume_is_the_share_of_the_body():
    label = np.repeat(np.array([0, 1, 2, 3], np.uint8), [5, 10, 20, 30]).reshape(5, 13, 1)
    assert list(label_shape_features(label, np.eye(4)).normalized_volume) == [10 / 60, 20 / 60, 30 / 60]


def test_code_is_compiled_for_both_types_of_label_maps(monkeypatch):
    seen = []
    monkeypatch.setattr(features, "shape_columns", lambda label, affine: seen.append(label.dtype))
    features.compile_features()
    assert seen == [np.uint8, np.uint16]


SHEARED, FLAT = np.eye(4), np.diag([1.0, 1.0, 0.0, 1.0])
SHEARED[0, 1] = 0.1
MAP = np.ones((2, 2, 2), np.uint8)
BAD = [
    (MAP[0], np.eye(4), "the label map has shape (2, 2): give three dimensions."),
    (
        MAP.astype(np.float32),
        np.eye(4),
        "the label map has values of type float32: give integers; save labels without scaling.",
    ),
    (MAP.astype(np.int16) * -3, np.eye(4), "the label map holds -3: labels start at 0; remap it."),
    (MAP.astype(np.int32) * 65536, np.eye(4), "the label map holds 65536: labels end at 65535; remap it."),
    (MAP, np.eye(3), f"the affine is {np.eye(3).tolist()}: give 4 x 4 finite numbers."),
    (MAP, np.full((4, 4), np.nan), "give 4 x 4 finite numbers."),
    (MAP, FLAT, f"the affine {FLAT[:3, :3].tolist()} is singular: give three axes that span the space."),
    (
        MAP,
        SHEARED,
        "the affine is sheared: axes 0 and 1 meet at 84.29 degrees; resample the map onto a grid with right angles.",
    ),
]


@pytest.mark.parametrize(("label", "affine", "message"), BAD)
def test_bad_input_is_named(label, affine, message):
    with pytest.raises(InputError, match=re.escape(message) + "$"):
        label_shape_features(label, affine)
