"""Scores of a segmentation, organ by organ, on the grid and in the millimetres of the original image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy.ndimage import find_objects

from scripts.cases import whole_numbers
from scripts.labels import foreground_classes

SCORE_COLUMNS = (
    "organ",
    "class_id",
    "dice",
    "hd95_mm",
    "asd_mm",
    "surface_dice",
    "volume_ml_pred",
    "volume_ml_label",
)
COUNTS = ("n", "n_missed", "n_spurious")
Box = tuple[slice, ...]


def organ_scores(
    pred: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    *,
    spacing_mm: Sequence[float],
    class_names: Mapping[int, str],
    tolerance_mm: float = 2.0,
) -> list[dict[str, Any]]:
    """Score each organ of a predicted label map against the reference.

    All distances run from the centre of an edge voxel to that of the nearest edge voxel of the other mask,
    where an edge voxel is one that erosion by its face neighbours removes (outside the image is background).

    - `dice`: 2 |P and L| / (|P| + |L|).
    - `hd95_mm`: the larger of the two directed 95th percentiles (linear interpolation).
    - `asd_mm`: symmetric average surface distance, the mean over the edge voxels of both masks together.
    - `surface_dice`: share of the edge voxels of both masks that lie within `tolerance_mm` of the other;
      voxels are counted, not weighted by the area that they stand for.

    An organ absent from both gets no row. One absent from either has dice and surface_dice 0, and NaN for the
    distances, which do not exist then.

    Args:
        pred: predicted class ids.
        label: reference class ids on the same grid.
        spacing_mm: voxel size in mm along each axis; axes are taken as orthogonal.
        class_names: class id to organ; id 0 is left out.
        tolerance_mm: deviation in mm that `surface_dice` accepts.

    Returns:
        One row per organ, by ascending class id, with the keys `SCORE_COLUMNS`.

    Shape:
        Both label maps: (X, Y, Z).

    Raises:
        ValueError: shapes differ, spacing or tolerance is impossible, or a label map holds an unnamed class.

    Source:
        `monai.metrics` 1.6.1: DiceMetric, HausdorffDistanceMetric(percentile=95),
        SurfaceDistanceMetric(symmetric=True) and SurfaceDiceMetric(use_subvoxels=False), to which the values
        are equal. MONAI computes edges and distances anew for each of them; here they are computed once.
        Departures: MONAI's infinite distances of a one-sided organ are NaN here, and its NaN Dice of a
        spurious organ is 0.
    """
    names = foreground_classes(class_names)
    maps = {"pred": whole_numbers(pred, name="pred"), "label": whole_numbers(label, name="label")}
    _check_inputs(maps, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    boxes = {key: _organ_boxes(volume, names, name=key) for key, volume in maps.items()}
    rows = []
    for class_id, organ in names.items():
        found = [boxes[key][class_id] for key in boxes if class_id in boxes[key]]
        if found:
            box = _union_with_margin(found)
            masks = [volume[box] == class_id for volume in maps.values()]
            scores = _mask_scores(*masks, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
            rows.append({"organ": organ, "class_id": class_id, **scores})
    return rows


def _check_inputs(maps: Mapping[str, np.ndarray], *, spacing_mm: Sequence[float], tolerance_mm: float) -> None:
    """Refuse what cannot be compared; see `organ_scores`."""
    pred_shape, label_shape = maps["pred"].shape, maps["label"].shape
    if pred_shape != label_shape or len(pred_shape) != 3:
        raise ValueError(
            f"pred has shape {pred_shape} and label {label_shape}, but both have to be (X, Y, Z) on one "
            "grid: bring the prediction back to the label's grid first."
        )
    if len(spacing_mm) != 3 or not np.all(np.isfinite(spacing_mm)) or min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)}: give three voxel sizes above 0 mm.")
    if not 0 <= tolerance_mm < np.inf:
        raise ValueError(f"tolerance_mm is {tolerance_mm}: give a finite tolerance of 0 mm or more.")


def _organ_boxes(volume: np.ndarray, names: Mapping[int, str], *, name: str) -> dict[int, Box]:
    """Find the bounding box of each class in a label map in one pass."""
    boxes = {index: box for index, box in enumerate(find_objects(volume), start=1) if box is not None}
    unnamed = sorted(boxes.keys() - names.keys())
    if unnamed or volume.min(initial=0) < 0:
        unnamed = unnamed or [int(volume.min())]
        raise ValueError(f"{name} holds the classes {unnamed}, which class_names lacks: name or remap them.")
    return boxes


def _union_with_margin(boxes: Sequence[Box]) -> Box:
    """Join bounding boxes and widen them by the one voxel that finding edges needs; slices clip above."""
    return tuple(
        slice(max(0, min(side.start for side in sides) - 1), max(side.stop for side in sides) + 1)
        for sides in zip(*boxes, strict=True)
    )


def _mask_scores(
    pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """Score one organ's masks (x, y, z), of which at least one is not empty."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    n_pred, n_label = int(np.count_nonzero(pred)), int(np.count_nonzero(label))
    surface = {"hd95_mm": np.nan, "asd_mm": np.nan, "surface_dice": 0.0}
    if n_pred and n_label:
        surface = _surface_scores(pred, label, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    return {
        "dice": 2.0 * int(np.count_nonzero(pred & label)) / (n_pred + n_label),
        **surface,
        "volume_ml_pred": n_pred * voxel_ml,
        "volume_ml_label": n_label * voxel_ml,
    }


def _surface_scores(
    pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """Derive all surface scores of two non-empty masks from one set of distances per direction."""
    edges_pred, edges_label = get_mask_edges(pred, label, crop=False)
    there = get_surface_distance(edges_pred, edges_label, spacing=spacing_mm)
    back = get_surface_distance(edges_label, edges_pred, spacing=spacing_mm)
    both = np.concatenate([there, back])
    directed = [np.percentile(distances.astype(np.float64), 95) for distances in (there, back)]
    return {
        "hd95_mm": float(max(directed)),
        "asd_mm": float(both.mean(dtype=np.float64)),
        # compared in float32 as MONAI does: 20 steps of 0.1 mm are then within a tolerance of 2 mm
        "surface_dice": float(np.mean(both <= float(tolerance_mm))),
    }


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarise the scores of all cases per organ.

    Args:
        scores: rows of `organ_scores` of any number of cases; may be empty.

    Returns:
        One row per organ, by class id: `n` cases with the organ in label or prediction, of which `n_missed`
        lack it in the prediction and `n_spurious` in the label; mean, median, sample standard deviation and
        minimum of dice, mean and median of hd95_mm, mean of asd_mm and surface_dice. Missed and spurious
        organs count as 0 in the Dice columns and are left out of the distances. The last row, "mean", is the
        mean over organs of each column (NaN left out), with the totals of the counts.
    """
    missed, spurious = scores["volume_ml_pred"] == 0, scores["volume_ml_label"] == 0
    organs = scores.assign(n_missed=missed, n_spurious=spurious).groupby(["class_id", "organ"], sort=True)
    table = organs.agg(
        n=("dice", "size"),
        n_missed=("n_missed", "sum"),
        n_spurious=("n_spurious", "sum"),
        mean_dice=("dice", "mean"),
        median_dice=("dice", "median"),
        std_dice=("dice", "std"),
        min_dice=("dice", "min"),
        mean_hd95_mm=("hd95_mm", "mean"),
        median_hd95_mm=("hd95_mm", "median"),
        mean_asd_mm=("asd_mm", "mean"),
        mean_surface_dice=("surface_dice", "mean"),
    )
    table = table.reset_index("class_id", drop=True).reset_index().astype(dict.fromkeys(COUNTS, int))
    last = table.drop(columns="organ").mean().to_dict() | {name: int(table[name].sum()) for name in COUNTS}
    return pd.concat([table, pd.DataFrame([{"organ": "mean", **last}])], ignore_index=True)
