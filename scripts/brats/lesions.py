"""Tumour regions and the lesions in them, scored as the BraTS 2023 challenge scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import binary_dilation, find_objects, generate_binary_structure
from scipy.ndimage import label as connected_components

from scripts.common.errors import InputError
from scripts.common.label_maps import as_label_array
from scripts.scoring.metrics import (
    Box,
    check_grid,
    class_boxes,
    dice,
    hd95_mm,
    surface_distances_mm,
    union_box,
    volumes_ml,
    with_mean_row,
)

REGION_COLUMNS = (
    "region",
    "dice",
    "hd95_mm",
    "lesion_dice",
    "lesion_hd95_mm",
    "lesions",
    "missed",
    "spurious",
    "volume_ml_pred",
    "volume_ml_label",
)
COUNTS = ("n", "lesions", "missed", "spurious")
NEIGHBOURS_18, NEIGHBOURS_26 = generate_binary_structure(3, 2), generate_binary_structure(3, 3)


@dataclass(frozen=True)
class LesionRules:
    """Which lesions count, and the penalty for a missed one; the defaults are those of adult glioma (BraTS-GLI).

    Attributes:
        dilation: iterations of the dilation (18 neighbours) of the reference before it is divided into lesions;
            meningioma and metastases of 2023 had 1.
        min_volume_mm3: a reference lesion of this volume or less does not count; metastases had 2.
        penalty_mm: distance of a missed or spurious lesion: the diagonal of 240 x 240 x 155 mm, rounded up.

    Raises:
        InputError: a value is negative, or `dilation` is not a whole number.
    """

    dilation: int = 3
    min_volume_mm3: float = 50.0
    penalty_mm: float = 374.0

    def __post_init__(self) -> None:
        if not isinstance(self.dilation, int):
            raise InputError(f"dilation is {self.dilation!r}: give a whole number of steps.")
        for name, value in asdict(self).items():
            if not 0 <= value < np.inf:
                raise InputError(f"{name} is {value}: give 0 or more.")


class Lesion(NamedTuple):
    """Scores of one lesion of the reference, with the predicted components that match it."""

    volume_mm3: float
    missed: bool
    dice: float
    hd95_mm: float


@dataclass(frozen=True)
class LesionScores:
    """Scores of one region of one case, lesion by lesion.

    Attributes:
        lesion_dice: mean over the lesions that count and the spurious ones, which have 0.
        lesion_hd95_mm: the same mean of HD95; missed and spurious lesions have the penalty.
        lesions: number of reference lesions that count.
        missed: number of those without a match.
        spurious: number of predicted components that match no reference lesion, small ones included.
    """

    lesion_dice: float
    lesion_hd95_mm: float
    lesions: int
    missed: int
    spurious: int


DEFAULT_RULES = LesionRules()


def lesion_scores(
    pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float], rules: LesionRules = DEFAULT_RULES
) -> LesionScores:
    """Score a predicted mask lesion by lesion.

    A lesion is the part of the reference in one 26-connected component of the dilated reference, so that
    fragments near each other are one lesion. Every 26-connected component of the prediction that touches the
    dilated lesion matches it, whole, even if it also touches another lesion. Dice and HD95 compare the lesion
    before dilation with all its matches together. A lesion without a match is missed: Dice 0 and the penalty. A
    component without a lesion is spurious: the same. Lesions too small to count are left out of the scores; their
    matches are not spurious. If there is nothing to score, Dice is 1 and HD95 0.

    Args:
        pred: predicted mask; voxels other than 0 belong to it.
        label: reference mask on the same grid.
        spacing_mm: voxel size in mm along each axis; the dilation is in voxels of any size.
        rules: see `LesionRules`.

    Returns:
        Means and counts.

    Shape:
        Both masks: (X, Y, Z).

    Raises:
        InputError: shapes differ, or the spacing is impossible.

    Source:
        github.com/rachitsaluja/BraTS-2023-Metrics, README.md and eval.py, and the organisers' rules of 2023 at
        synapse.org/Synapse:syn51156910/discussion/threadId=10357. Departures: HD95 is that of
        `scripts.scoring.metrics`, between the centres of edge voxels, while the challenge weighs surface elements at
        the corners of voxels by their area (on 30 pairs of lumpy spheres of 1 mm voxels ours is larger by 0.3 mm
        on average and by 1.0 mm at most); the volume is rounded to 0.001 mm3 first, so that the last digits of an
        affine do not decide whether a lesion of 50 voxels counts.

    >>> label = np.zeros((20, 8, 8), bool)
    >>> label[1:6, 1:6, 1:6] = label[14:19, 1:6, 1:6] = True
    >>> pred = label & (np.arange(20) < 10)[:, None, None]
    >>> lesion_scores(pred, label, spacing_mm=(1, 1, 1))
    LesionScores(lesion_dice=0.5, lesion_hd95_mm=187.0, lesions=2, missed=1, spurious=0)
    """
    check_grid(pred, label, spacing_mm=spacing_mm)
    pred, label = pred.astype(bool, copy=False), label.astype(bool, copy=False)
    found = [box for mask in (pred, label) for box in find_objects(mask.view(np.uint8))]
    if not found:
        return LesionScores(1.0, 0.0, lesions=0, missed=0, spurious=0)
    box = union_box(found, margin=max(rules.dilation, 1))
    all_lesions, spurious = _score_lesions(pred[box], label[box], spacing_mm=spacing_mm, rules=rules)
    lesions = [lesion for lesion in all_lesions if lesion.volume_mm3 > rules.min_volume_mm3]
    scored = len(lesions) + spurious
    distance_mm = sum(lesion.hd95_mm for lesion in lesions) + spurious * rules.penalty_mm
    return LesionScores(
        lesion_dice=sum(lesion.dice for lesion in lesions) / scored if scored else 1.0,
        lesion_hd95_mm=distance_mm / scored if scored else 0.0,
        lesions=len(lesions),
        missed=sum(lesion.missed for lesion in lesions),
        spurious=spurious,
    )


def _score_lesions(
    pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float], rules: LesionRules
) -> tuple[list[Lesion], int]:
    """Score each lesion of two masks that end at least a voxel before the edges; count the spurious components."""
    dilated = binary_dilation(label, NEIGHBOURS_18, iterations=rules.dilation) if rules.dilation else label
    dilated_ids, _ = connected_components(dilated, NEIGHBOURS_26)
    pred_ids, n_pred = connected_components(pred, NEIGHBOURS_26)
    matches = _match_components(dilated_ids, pred_ids)
    pred_boxes = find_objects(pred_ids)
    lesion_ids = np.where(label, dilated_ids, 0)
    lesions = []
    for lesion_id, box in enumerate(find_objects(lesion_ids), start=1):
        matched = matches.get(lesion_id, [])
        part = union_box([box, *(pred_boxes[i - 1] for i in matched)], margin=1)
        is_matched = np.isin(np.arange(n_pred + 1), matched)  # by component id, far faster than by voxel
        scores = _score_lesion(is_matched[pred_ids[part]], lesion_ids[part] == lesion_id, spacing_mm, rules)
        lesions.append(scores)
    return lesions, n_pred - len({i for matched in matches.values() for i in matched})


def _match_components(dilated_ids: np.ndarray, pred_ids: np.ndarray) -> dict[int, list[int]]:
    """List the predicted components that each dilated lesion touches.

    A component of the dilated reference is its lesion, dilated: each of its voxels comes from a voxel of the
    reference that it is connected to. So no lesion has to be dilated again by itself, as the challenge does.
    """
    both = (dilated_ids > 0) & (pred_ids > 0)
    base = int(pred_ids.max(initial=0)) + 1
    pairs = np.unique(dilated_ids[both].astype(np.int64) * base + pred_ids[both])
    matches: dict[int, list[int]] = {}
    for lesion_id, pred_id in zip(*np.divmod(pairs, base), strict=True):
        matches.setdefault(int(lesion_id), []).append(int(pred_id))
    return matches


def _score_lesion(pred: np.ndarray, lesion: np.ndarray, spacing_mm: Sequence[float], rules: LesionRules) -> Lesion:
    """Score the mask (x, y, z) of one lesion and that of its matches, which may be empty."""
    volume_mm3 = round(int(np.count_nonzero(lesion)) * float(np.prod(spacing_mm)), 3)
    return Lesion(volume_mm3, not pred.any(), *_overlap_and_distance(pred, lesion, spacing_mm, rules.penalty_mm))


def _overlap_and_distance(
    pred: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float], penalty_mm: float
) -> tuple[float, float]:
    """Return Dice and HD95: 1 and 0 if both masks are empty, 0 and the penalty if one is."""
    if pred.any() and label.any():
        return dice(pred, label), hd95_mm(*surface_distances_mm(pred, label, spacing_mm=spacing_mm))
    return (0.0, penalty_mm) if pred.any() or label.any() else (1.0, 0.0)


def region_scores(
    pred: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    *,
    spacing_mm: Sequence[float],
    regions: Mapping[str, Sequence[int]],
    rules: LesionRules = DEFAULT_RULES,
) -> list[dict[str, Any]]:
    """Score overlapping regions of a predicted label map, each as a whole and lesion by lesion.

    Empty regions score as in the challenge of 2023: absent from both, Dice is 1 and HD95 0; absent from one, Dice is
    0 and HD95 the penalty. So every region of every case has a row, and none is left out of a mean. The columns
    `dice` and `hd95_mm` are of the whole region; `lesion_…` and the counts are those of `LesionScores`.

    Args:
        pred: predicted class ids.
        label: reference class ids on the same grid.
        spacing_mm: voxel size in mm along each axis.
        regions: region to the class ids that make it up, such as `{"TC": [1, 3]}`.
        rules: see `LesionRules`.

    Returns:
        One row per region, in their order, with the keys `REGION_COLUMNS`.

    Shape:
        Both label maps: (X, Y, Z).

    Raises:
        InputError: shapes differ, the spacing is impossible, or a label map holds a class that is in no region.

    Source:
        See `lesion_scores`; Dice and HD95 of whole regions are the challenge's legacy metrics.
    """
    maps = {"pred": as_label_array(pred, name="pred"), "label": as_label_array(label, name="label")}
    check_grid(maps["pred"], maps["label"], spacing_mm=spacing_mm)
    classes = {class_id for members in regions.values() for class_id in members}
    boxes = [class_boxes(volume, classes, name=key, setting="regions") for key, volume in maps.items()]
    box = _common_box([box for found in boxes for box in found.values()], margin=max(rules.dilation, 1))
    rows = []
    for region, members in regions.items():
        masks = [np.isin(volume[box], list(members)) for volume in maps.values()]
        overlap, distance_mm = _overlap_and_distance(*masks, spacing_mm, rules.penalty_mm)
        rows.append(
            {"region": region, "dice": overlap, "hd95_mm": distance_mm}
            | asdict(lesion_scores(*masks, spacing_mm=spacing_mm, rules=rules))
            | volumes_ml(*masks, spacing_mm=spacing_mm)
        )
    return rows


def _common_box(boxes: Sequence[Box], *, margin: int) -> Box:
    """Join bounding boxes; if there are none, return a single voxel, which is background."""
    return union_box(boxes, margin=margin) if boxes else (slice(0, 1),) * 3


def summarise_regions(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarise the scores of all cases per region.

    Args:
        scores: rows of `region_scores` of any number of cases; may be empty.

    Returns:
        One row per region, in their order: `n` cases; the total numbers of lesions, of missed and of spurious ones;
        mean, median, sample standard deviation and minimum of dice; mean and median of hd95_mm, of lesion_dice and
        of lesion_hd95_mm. The last row, "mean", is the mean over regions, with the totals of the counts.
    """
    table = scores.groupby("region", sort=False).agg(
        n=("dice", "size"),
        lesions=("lesions", "sum"),
        missed=("missed", "sum"),
        spurious=("spurious", "sum"),
        mean_dice=("dice", "mean"),
        median_dice=("dice", "median"),
        std_dice=("dice", "std"),
        min_dice=("dice", "min"),
        mean_hd95_mm=("hd95_mm", "mean"),
        median_hd95_mm=("hd95_mm", "median"),
        mean_lesion_dice=("lesion_dice", "mean"),
        median_lesion_dice=("lesion_dice", "median"),
        mean_lesion_hd95_mm=("lesion_hd95_mm", "mean"),
        median_lesion_hd95_mm=("lesion_hd95_mm", "median"),
    )
    return with_mean_row(table, counts=COUNTS)
