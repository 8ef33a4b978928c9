import re

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric, SurfaceDistanceMetric
from scipy.ndimage import gaussian_filter

from scripts.common.errors import InputError
from scripts.scoring.metrics import SCORE_COLUMNS, organ_scores, summarise

NAMES = {0: "background", 1: "spleen", 2: "liver", 3: "aorta", 4: "pancreas"}


def cube(shape=(30, 30, 30), start=(8, 8, 8), side=10, value=1, dtype=np.uint8):
    volume = np.zeros(shape, dtype=dtype)
    volume[tuple(slice(s, s + side) for s in start)] = value
    return volume


def blobs(seed, shape=(34, 29, 22), classes=3):
    """Smooth random organs that touch each other and the image's faces."""
    noise = np.random.default_rng(seed).normal(size=(classes + 1, *shape))
    fields = np.stack([gaussian_filter(channel, 3, mode="wrap") for channel in noise])
    return fields.argmax(axis=0).astype(np.uint8)


def one_hot(volume, classes=3):
    return torch.from_numpy(np.stack([volume == c for c in range(classes + 1)])[None].astype(np.float32))


def test_identical_maps_are_perfect():
    label = blobs(0)
    rows = organ_scores(label, label, spacing_mm=(1, 2, 3), class_names=NAMES)
    assert [row["organ"] for row in rows] == ["spleen", "liver", "aorta"]
    for row in rows:
        assert tuple(row) == SCORE_COLUMNS
        assert (row["dice"], row["hd95_mm"], row["asd_mm"], row["surface_dice"]) == (1, 0, 0, 1)
        assert row["volume_ml_pred"] == row["volume_ml_label"]
        assert row["volume_ml_label"] == pytest.approx(np.sum(label == row["class_id"]) * 6 / 1000)


def test_shifted_cube_has_the_dice_and_distance_of_its_shift():
    label, pred = cube(), cube(start=(11, 8, 8))
    (row,) = organ_scores(pred, label, spacing_mm=(2.0, 1.0, 1.0), class_names={1: "spleen"}, tolerance_mm=5.9)
    assert row["dice"] == pytest.approx(2 * 7 * 100 / 2000)
    assert row["hd95_mm"] == pytest.approx(6.0)  # the far face alone is a tenth of the surface
    (wide,) = organ_scores(pred, label, spacing_mm=(2.0, 1.0, 1.0), class_names={1: "spleen"}, tolerance_mm=6.0)
    assert row["surface_dice"] < 1 == wide["surface_dice"]


def test_concentric_spheres_are_as_far_apart_as_their_radii():
    spacing_mm = np.array([1.0, 1.5, 0.75])
    grid = np.indices((48, 34, 64)).transpose(1, 2, 3, 0)
    radius_mm = np.linalg.norm((grid - [24, 17, 32]) * spacing_mm, axis=-1)
    label, pred = (radius_mm <= 16).astype(np.uint8), (radius_mm <= 20).astype(np.uint8)
    (row,) = organ_scores(pred, label, spacing_mm=spacing_mm, class_names=NAMES, tolerance_mm=6.0)
    assert row["asd_mm"] == pytest.approx(4.0, abs=0.3)
    assert row["hd95_mm"] == pytest.approx(4.0, abs=0.8)
    assert row["surface_dice"] == 1.0
    assert row["dice"] == pytest.approx(2 * 16**3 / (16**3 + 20**3), abs=0.01)
    assert row["volume_ml_label"] == pytest.approx(4 / 3 * np.pi * 1.6**3, rel=0.01)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # in a call of MONAI 1.6.1
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (2.1, 0.9, 1.3)])
@pytest.mark.parametrize("seed", [1, 2])
def test_scores_equal_monai_metrics(seed, spacing_mm):
    label, pred = blobs(seed), blobs(seed)
    pred[3:] = pred[:-3].copy()
    pred[:, 20:] = blobs(seed + 10)[:, 20:]
    rows = organ_scores(pred, label, spacing_mm=spacing_mm, class_names=NAMES, tolerance_mm=2.0)
    oracles = {
        "dice": DiceMetric(reduction="none"),
        "hd95_mm": HausdorffDistanceMetric(percentile=95, reduction="none"),
        "asd_mm": SurfaceDistanceMetric(symmetric=True, reduction="none"),
        "surface_dice": SurfaceDiceMetric([2.0] * 4, include_background=True, reduction="none"),
    }
    for key, metric in oracles.items():
        options = {} if key == "dice" else {"spacing": spacing_mm}
        expected = metric(one_hot(pred), one_hot(label), **options)[0, -3:].tolist()
        assert [row[key] for row in rows] == pytest.approx(expected, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
def test_scores_do_not_depend_on_dtype_or_container(dtype, wrap):
    label, pred = blobs(4), blobs(5)
    expected = organ_scores(pred, label, spacing_mm=(1, 1, 2), class_names=NAMES)
    actual = organ_scores(wrap(pred.astype(dtype)), wrap(label.astype(dtype)), spacing_mm=(1, 1, 2), class_names=NAMES)
    assert actual == expected


def test_scores_do_not_depend_on_memory_order():
    label, pred = blobs(4), blobs(5)
    expected = organ_scores(pred, label, spacing_mm=(1, 1, 2), class_names=NAMES)
    actual = organ_scores(np.asfortranarray(pred), label[::-1][::-1], spacing_mm=(1, 1, 2), class_names=NAMES)
    assert actual == expected


def test_organ_absent_from_both_has_no_row():
    rows = organ_scores(cube(), cube(), spacing_mm=(1, 1, 1), class_names=NAMES)
    assert [row["class_id"] for row in rows] == [1]
    empty = np.zeros((5, 5, 5), dtype=np.uint8)
    assert organ_scores(empty, empty, spacing_mm=(1, 1, 1), class_names=NAMES) == []


@pytest.mark.parametrize("missed", [True, False])
def test_organ_absent_from_one_scores_zero_and_has_no_distances(missed):
    maps = [np.zeros((30, 30, 30), dtype=np.uint8), cube()]
    pred, label = maps if missed else maps[::-1]
    (row,) = organ_scores(pred, label, spacing_mm=(1, 1, 1), class_names=NAMES)
    assert (row["dice"], row["surface_dice"]) == (0.0, 0.0)
    assert np.isnan([row["hd95_mm"], row["asd_mm"]]).all()
    assert (row["volume_ml_pred"], row["volume_ml_label"]) == ((0.0, 1.0) if missed else (1.0, 0.0))


def test_an_organ_that_fills_the_image_has_its_edge_at_the_border():
    full = np.ones((6, 5, 4), dtype=np.uint8)
    inner = np.zeros_like(full)
    inner[1:-1, 1:-1, 1:-1] = 1
    (row,) = organ_scores(inner, full, spacing_mm=(1, 1, 1), class_names=NAMES, tolerance_mm=0.5)
    assert row["surface_dice"] == 0.0
    assert 1.0 <= row["hd95_mm"] <= np.sqrt(3)


def test_channel_def_with_string_keys_is_accepted():
    names = {str(k): v for k, v in NAMES.items()}
    assert organ_scores(cube(), cube(), spacing_mm=(1, 1, 1), class_names=names)[0]["organ"] == "spleen"


HALF = cube().astype(np.float32) / 2


@pytest.mark.parametrize(
    ("pred", "options", "message"),
    [
        (cube((30, 30, 31)), {}, "pred has shape (30, 30, 31) and label (30, 30, 30), but both have to be"),
        (cube()[None], {}, "pred has shape (1, 30, 30, 30)"),
        (cube(), {"spacing_mm": (1, 0, 1)}, "spacing_mm is (1, 0, 1): give three voxel sizes above 0 mm."),
        (cube(), {"spacing_mm": (1, 1)}, "spacing_mm is (1, 1): give three"),
        (cube(), {"tolerance_mm": -1}, "tolerance_mm is -1: give a finite tolerance of 0 mm or more."),
        (cube(value=7), {}, "pred holds the classes [7], which class_names lacks: name or remap them."),
        (cube(value=-1, dtype=np.int8), {}, "pred holds the classes [-1], which class_names lacks"),
        (cube(value=2**30, dtype=np.int32), {}, "pred holds the classes [1073741824], which class_names lacks"),
        (
            np.arange(27000).reshape(30, 30, 30),
            {},
            f"pred holds the classes {[*range(5, 25)]}, which",
        ),
        (HALF, {}, "pred holds 0.5, not a class id: resample label maps with nearest neighbour."),
    ],
)
def test_bad_input_is_refused(pred, options, message):
    options = {"spacing_mm": (1, 1, 1), "class_names": NAMES} | options
    with pytest.raises(InputError, match="^" + re.escape(message)):
        organ_scores(pred, cube(), **options)


def table():
    nan = float("nan")
    rows = [
        ("spleen", 1, 0.9, 2.0, 1.0, 0.8, 5.0, 6.0),
        ("spleen", 1, 0.7, 4.0, 2.0, 0.6, 5.0, 6.0),
        ("spleen", 1, 0.0, nan, nan, 0.0, 0.0, 6.0),
        ("aorta", 3, 0.5, 1.0, 1.0, 0.5, 2.0, 2.0),
        ("liver", 2, 0.0, nan, nan, 0.0, 3.0, 0.0),
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def test_summary_counts_missed_and_spurious_organs():
    summary = summarise(table()).set_index("organ")
    assert list(summary.index) == ["spleen", "liver", "aorta", "mean"]
    counts = summary[["n", "n_missed", "n_spurious"]]
    assert counts.loc["spleen"].tolist() == [3, 1, 0]
    assert counts.loc["liver"].tolist() == [1, 0, 1]
    assert counts.loc["mean"].tolist() == [5, 1, 1]


def test_summary_leaves_undefined_distances_out():
    summary = summarise(table()).set_index("organ")
    spleen = summary.loc["spleen"]
    assert spleen["mean_dice"] == pytest.approx(1.6 / 3)
    assert (spleen["median_dice"], spleen["min_dice"]) == (0.7, 0.0)
    assert spleen["std_dice"] == pytest.approx(np.std([0.9, 0.7, 0.0], ddof=1))
    assert (spleen["mean_hd95_mm"], spleen["median_hd95_mm"], spleen["mean_asd_mm"]) == (3.0, 3.0, 1.5)
    assert np.isnan(summary.loc["liver", "mean_hd95_mm"])
    assert np.isnan(summary.loc["aorta", "std_dice"])


def test_last_row_is_the_mean_over_organs_of_their_means():
    mean = summarise(table()).iloc[-1]
    assert mean["mean_dice"] == pytest.approx((1.6 / 3 + 0.5 + 0.0) / 3)
    assert mean["mean_hd95_mm"] == pytest.approx((3.0 + 1.0) / 2)
    assert mean["mean_surface_dice"] == pytest.approx((1.4 / 3 + 0.5 + 0.0) / 3)


def test_summary_of_no_cases_has_the_mean_row_alone():
    summary = summarise(table().iloc[:0])
    assert summary["organ"].tolist() == ["mean"]
    assert summary["n"].tolist() == [0]
    assert np.isnan(summary["mean_dice"]).all()
