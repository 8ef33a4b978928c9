import re

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import HausdorffDistanceMetric
from scipy.ndimage import binary_dilation, gaussian_filter, generate_binary_structure
from skimage.measure import label as skimage_label

from scripts.brats.lesions import (
    REGION_COLUMNS,
    LesionRules,
    LesionScores,
    lesion_scores,
    region_scores,
    summarise_regions,
)
from scripts.common.errors import InputError

REGIONS = {"TC": [1, 3], "WT": [1, 2, 3], "ET": [3]}
SHAPE = (40, 24, 20)
MM = (1.0, 1.0, 1.0)


def cubes(*starts, side=5, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    for start in starts:
        mask[tuple(slice(s, s + side) for s in start)] = True
    return mask


def voxels(*indices, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(np.transpose(indices))] = True
    return mask


def scores(pred, label, *, spacing_mm=MM, **rules):
    return lesion_scores(pred, label, spacing_mm=spacing_mm, rules=LesionRules(**rules))


ONE, FAR = (4, 5, 5), (28, 5, 5)


def test_perfect_prediction():
    mask = cubes(ONE, FAR)
    assert scores(mask, mask) == LesionScores(1.0, 0.0, lesions=2, missed=0, spurious=0)


def test_missed_lesion_costs_dice_0_and_the_penalty():
    found = scores(cubes(ONE), cubes(ONE, FAR))
    assert found == LesionScores(0.5, 187.0, lesions=2, missed=1, spurious=0)


def test_spurious_lesion_costs_the_same_however_small():
    found = scores(cubes(ONE) | voxels((30, 10, 10)), cubes(ONE))
    assert found == LesionScores(0.5, 187.0, lesions=1, missed=0, spurious=1)


def test_mean_is_over_lesions_and_spurious_ones():
    found = scores(cubes(ONE) | voxels((37, 0, 0), (0, 0, 19)), cubes(ONE, FAR))
    assert found == LesionScores(0.25, 0.75 * 374, lesions=2, missed=1, spurious=2)


@pytest.mark.parametrize(
    ("pred", "label", "expected"),
    [
        (cubes(), cubes(), LesionScores(1.0, 0.0, 0, 0, 0)),
        (cubes(ONE), cubes(), LesionScores(0.0, 374.0, 0, 0, 1)),
        (cubes(ONE, FAR), cubes(), LesionScores(0.0, 374.0, 0, 0, 2)),
        (cubes(), cubes(ONE), LesionScores(0.0, 374.0, 1, 1, 0)),
    ],
    ids=["both empty", "no reference", "no reference, two predicted", "no prediction"],
)
def test_empty_masks(pred, label, expected):
    assert scores(pred, label) == expected


@pytest.mark.parametrize(("gap", "expected"), [(6, (2 / 3, 1, 0)), (7, (0.5, 2, 1))])
def test_fragments_within_twice_the_dilation_are_one_lesion(gap, expected):
    label = cubes(ONE, (ONE[0] + 5 + gap, *ONE[1:]))
    found = scores(cubes(ONE), label)
    assert (found.lesion_dice, found.lesions, found.missed) == pytest.approx(expected)


def test_reference_is_dilated_once_for_meningioma():
    label = cubes(ONE, (ONE[0] + 5 + 3, *ONE[1:]))
    assert scores(label, label).lesions == 1
    assert scores(label, label, dilation=1).lesions == 2
    touching_corners = cubes(ONE, tuple(start + 5 for start in ONE))
    assert scores(touching_corners, touching_corners, dilation=0).lesions == 1


def test_one_prediction_over_two_lesions_is_matched_whole_to_both():
    bar = np.zeros(SHAPE, dtype=bool)
    bar[4:34, 5:10, 5:10] = True
    found = scores(bar, cubes(ONE, (29, 5, 5)))
    assert found.lesion_dice == pytest.approx(2 * 125 / (125 + 750))
    assert (found.lesions, found.missed, found.spurious) == (2, 0, 0)
    assert found.lesion_hd95_mm == pytest.approx(24, abs=1)  # the bar ends 25 voxels behind each cube


def test_two_predictions_on_one_lesion_count_together():
    label = np.zeros(SHAPE, dtype=bool)
    label[4:15, 5:10, 5:10] = True
    found = scores(cubes(ONE, (10, 5, 5)), label)
    assert found.lesion_dice == pytest.approx(2 * 250 / (250 + 275))
    assert (found.lesions, found.missed, found.spurious) == (1, 0, 0)


def test_predicted_components_connect_at_corners():
    tail = [(8 + i, 9 + i % 2, 9 + i % 2) for i in range(20)]
    found = scores(cubes(ONE) | voxels(*tail), cubes(ONE))
    assert (found.missed, found.spurious) == (0, 0)
    assert found.lesion_dice == pytest.approx(2 * 125 / (125 + 125 + 19))


@pytest.mark.parametrize(
    ("offset", "matched"), [((2, 2, 2), True), ((3, 3, 0), True), ((3, 3, 1), False), ((3, 3, 3), False)]
)
def test_dilation_reaches_through_faces_and_edges_not_corners(offset, matched):
    corner = np.add(ONE, 4)
    found = scores(voxels(corner + offset), cubes(ONE))
    assert (found.missed, found.spurious) == ((0, 0) if matched else (1, 1))
    assert found.lesion_dice == 0.0
    assert (found.lesion_hd95_mm < 12) == matched, "near without overlap is a distance, not the penalty"


def line(n_voxels):
    return voxels(*((i % 25, 10, 10 + i // 25) for i in range(n_voxels)))


@pytest.mark.parametrize(("n_voxels", "counts"), [(50, 0), (51, 1)])
def test_lesion_of_exactly_the_threshold_does_not_count(n_voxels, counts):
    lesion = line(n_voxels)
    assert scores(cubes(), lesion) == LesionScores(1.0 - counts, 374.0 * counts, counts, counts, 0)
    assert scores(lesion, lesion) == LesionScores(1.0, 0.0, counts, 0, 0)
    assert scores(lesion, lesion, min_volume_mm3=2).lesions == 1


def test_rounding_of_the_spacing_does_not_move_the_threshold():
    assert scores(cubes(), line(50), spacing_mm=(1 + 1e-7, 1.0, 1.0)).lesions == 0


def test_threshold_is_in_mm3_and_dilation_in_voxels():
    assert scores(cubes(), line(20), spacing_mm=(1.0, 1.0, 3.0)).missed == 1
    label = cubes(ONE, (ONE[0] + 5 + 6, *ONE[1:]))
    assert scores(label, label, spacing_mm=(3.0, 1.0, 1.0)).lesions == 1


def test_match_of_a_lesion_too_small_to_count_is_not_spurious():
    small = voxels((30, 10, 10))
    both = cubes(ONE) | small
    assert scores(both, both) == LesionScores(1.0, 0.0, lesions=1, missed=0, spurious=0)
    assert scores(cubes(ONE), both) == LesionScores(1.0, 0.0, lesions=1, missed=0, spurious=0)


def test_distances_are_in_mm_along_each_axis():
    shifted = cubes((ONE[0], ONE[1], ONE[2] + 1))
    found = scores(shifted, cubes(ONE), spacing_mm=(1.0, 1.0, 3.0))
    assert found.lesion_hd95_mm == pytest.approx(3.0)
    assert found.lesion_dice == pytest.approx(0.8)


def test_scores_do_not_depend_on_the_distance_to_the_faces_of_the_image():
    inner, at_face = cubes((8, 5, 5)), cubes((0, 0, 0))
    for start, label in (((9, 5, 5), inner), ((1, 0, 0), at_face)):
        assert scores(cubes(start), label).lesion_dice == pytest.approx(0.8)
        assert scores(cubes(start), label).lesion_hd95_mm == pytest.approx(1.0)


def oracle(pred, label, *, spacing_mm, dilation, min_volume_mm3):
    """The challenge's procedure as its README describes it, on the whole volume, one lesion at a time."""
    element = generate_binary_structure(3, 2)

    def widen(mask):
        return binary_dilation(mask, element, iterations=dilation)

    pred_ids = skimage_label(pred, connectivity=3)
    lesion_ids = skimage_label(widen(label), connectivity=3) * label
    hausdorff = HausdorffDistanceMetric(percentile=95, reduction="none", include_background=True)
    rows, matched, missed = [], set(), 0
    for lesion_id in range(1, lesion_ids.max() + 1):
        lesion = lesion_ids == lesion_id
        touching = set(np.unique(pred_ids[widen(lesion)])) - {0}
        matched |= touching
        if lesion.sum() * np.prod(spacing_mm) <= min_volume_mm3:
            continue
        found = np.isin(pred_ids, list(touching))
        missed += not touching
        pair = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (found, lesion)]
        distance_mm = float(hausdorff(*pair, spacing=spacing_mm)) if touching else 374.0
        rows.append((2 * (found & lesion).sum() / (found.sum() + lesion.sum()), distance_mm))
    spurious = pred_ids.max() - len(matched)
    means = np.mean(rows + [(0.0, 374.0)] * spurious, axis=0)
    return (*means, len(rows), missed, spurious)


def speckles(seed, *, threshold):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(44, 34, 30)), 2)
    return noise / noise.std() > threshold


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # within MONAI 1.6.1
@pytest.mark.parametrize(
    ("seed", "dilation", "spacing_mm"), [(0, 3, MM), (1, 3, (0.9, 1.1, 2.5)), (2, 1, (2.0, 0.7, 1.0)), (3, 2, MM)]
)
def test_scores_equal_the_procedure_on_the_whole_volume(seed, dilation, spacing_mm):
    label = speckles(seed, threshold=2.4)
    pred = np.roll(speckles(seed, threshold=2.0), 1, axis=0) ^ speckles(seed + 10, threshold=2.7)
    rules = {"dilation": dilation, "min_volume_mm3": 20.0}
    expected = oracle(pred, label, spacing_mm=spacing_mm, **rules)
    found = scores(pred, label, spacing_mm=spacing_mm, **rules)
    assert min(found.lesions, found.spurious) >= 2, "the case is too easy"
    assert (found.lesions, found.missed, found.spurious) == expected[2:]
    assert (found.lesion_dice, found.lesion_hd95_mm) == pytest.approx(expected[:2], abs=1e-4)


def tumour(start=(6, 6, 4), shape=SHAPE):
    """Edema of 10 x 8 x 8 around a necrotic core of 4 x 4 x 4 whose upper half enhances."""
    label = np.zeros(shape, dtype=np.uint8)
    x, y, z = start
    label[x : x + 10, y : y + 8, z : z + 8] = 2
    label[x + 3 : x + 7, y + 2 : y + 6, z + 2 : z + 6] = 1
    label[x + 3 : x + 7, y + 2 : y + 6, z + 4 : z + 6] = 3
    return label


def regions(pred, label, *, spacing_mm=MM, **rules):
    rows = region_scores(pred, label, spacing_mm=spacing_mm, regions=REGIONS, rules=LesionRules(**rules))
    return {row["region"]: row for row in rows}


def test_regions_overlap():
    label = tumour()
    found = regions(np.where(label == 3, 1, label), label, min_volume_mm3=10)
    assert tuple(found["WT"]) == REGION_COLUMNS
    assert list(found) == list(REGIONS)
    assert [found[name]["volume_ml_label"] for name in REGIONS] == pytest.approx([0.064, 0.640, 0.032])
    for name in ("TC", "WT"):
        assert (found[name]["dice"], found[name]["hd95_mm"], found[name]["lesion_dice"]) == (1, 0, 1)
    assert (found["ET"]["dice"], found["ET"]["hd95_mm"]) == (0, 374)
    assert (found["ET"]["missed"], found["ET"]["lesion_hd95_mm"], found["ET"]["volume_ml_pred"]) == (1, 374, 0)


def test_a_region_absent_from_both_is_perfect():
    label = np.where(tumour() == 3, 1, tumour())
    assert (regions(label, label)["ET"]["dice"], regions(label, label)["ET"]["hd95_mm"]) == (1.0, 0.0)
    empty = regions(np.zeros_like(label), np.zeros_like(label))
    for row in empty.values():
        assert (row["dice"], row["hd95_mm"], row["lesion_dice"], row["lesion_hd95_mm"]) == (1, 0, 1, 0)
        assert (row["lesions"], row["volume_ml_pred"], row["volume_ml_label"]) == (0, 0, 0)


def test_a_region_absent_from_the_label_costs_the_penalty():
    label = tumour()
    row = regions(label, np.where(label == 3, 1, label))["ET"]
    assert (row["dice"], row["hd95_mm"], row["lesion_dice"], row["lesion_hd95_mm"]) == (0, 374, 0, 374)
    assert (row["lesions"], row["missed"], row["spurious"]) == (0, 0, 1)


def test_whole_region_and_lesions_differ_by_the_small_lesion():
    label = tumour() + np.where(cubes((30, 10, 10), side=5), 2, 0).astype(np.uint8)
    row = regions(tumour(), label)["WT"]
    assert row["dice"] == pytest.approx(2 * 640 / (640 + 765))
    assert (row["lesion_dice"], row["lesions"], row["missed"]) == (0.5, 2, 1)


def test_scores_do_not_depend_on_the_air_around():
    rng = np.random.default_rng(0)
    pred, label = (tumour(start, (24, 22, 18)) for start in ((6, 7, 4), (7, 6, 5)))
    label[rng.random(label.shape) < 0.002] = 3
    wide = [np.pad(volume, ((9, 30), (0, 11), (20, 1))) for volume in (pred, label)]
    assert regions(*wide, spacing_mm=(1, 2, 3)) == regions(pred, label, spacing_mm=(1, 2, 3))


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (tumour() * 4 // 3, "pred holds the classes [4], which regions lacks: name or remap them."),
        (tumour().astype(np.int8) - 1, "pred holds the classes [-1], which regions lacks"),
        (tumour() / 2, "pred holds 0.5, not a class id: resample label maps with nearest neighbour."),
        (tumour()[1:], "pred has shape (39, 24, 20) and label (40, 24, 20), but both have to be"),
    ],
)
def test_bad_label_maps_are_refused(pred, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        regions(pred, tumour())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"dilation": -1}, "dilation is -1: give 0 or more."),
        ({"dilation": 1.5}, "dilation is 1.5: give a whole number of steps."),
        ({"min_volume_mm3": float("nan")}, "min_volume_mm3 is nan: give 0 or more."),
        ({"penalty_mm": float("inf")}, "penalty_mm is inf: give 0 or more."),
    ],
)
def test_impossible_rules_are_refused(rules, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        LesionRules(**rules)


def test_masks_of_different_shape_are_refused():
    with pytest.raises(InputError, match=r"^pred has shape \(40, 24, 20\) and label \(3, 3, 3\)"):
        scores(cubes(), np.zeros((3, 3, 3)))


def test_summary_keeps_the_order_of_the_regions_and_adds_up_counts():
    label = tumour()
    without_et = np.where(label == 3, 1, label)
    cases = [region_scores(pred, label, spacing_mm=MM, regions=REGIONS) for pred in (label, without_et)]
    table = pd.DataFrame([row for rows in cases for row in rows])
    summary = summarise_regions(table).set_index("region")
    assert list(summary.index) == ["TC", "WT", "ET", "mean"]
    assert summary.loc["ET", ["mean_dice", "mean_hd95_mm", "min_dice"]].tolist() == [0.5, 187.0, 0.0]
    assert summary.loc["ET", "lesions"] == 0, "32 mm3 do not count"
    assert summary.loc["mean", "mean_dice"] == pytest.approx(2.5 / 3)
    assert summary.loc["mean", ["n", "lesions", "missed", "spurious"]].tolist() == [6, 4, 0, 0]


def test_summary_of_no_cases_has_the_mean_row_alone():
    summary = summarise_regions(pd.DataFrame(columns=list(REGION_COLUMNS)))
    assert summary["region"].tolist() == ["mean"]
    assert summary["n"].tolist() == [0]
    assert summary["mean_lesion_dice"].isna().all()
