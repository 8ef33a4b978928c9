"""Scores of each organ of a segmentation, on the original grid and in mm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy.ndimage import find_objects

from scripts.common.errors import InputError
from scripts.common.label_maps import as_label_array
from scripts.common.organs import foreground_classes

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
_LISTED = 20
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
        InputError: shapes differ, spacing or tolerance is impossible, or a label map holds an unnamed class.

    Source:
        `monai.metrics` 1.6.1: DiceMetric, HausdorffDistanceMetric(percentile=95),
        SurfaceDistanceMetric(symmetric=True) and SurfaceDiceMetric(use_subvoxels=False), to which the values
        are equal. MONAI computes edges and distances anew for each of them; here they are computed once.
        Departures: MONAI's infinite distances of a one-sided organ are NaN here, and its NaN Dice of a
        spurious organ is 0.

    >>> label = np.zeros((8, 8, 8), dtype=np.uint8)
    >>> label[2:6, 2:6, 2:6] = 1
    >>> (row,) = organ_scores(np.roll(label, 1, axis=0), label, spacing_mm=(2, 1, 1), class_names={1: "spleen"})
    >>> row["dice"], row["hd95_mm"], row["volume_ml_label"]
    (0.75, 2.0, 0.128)
    """
    names = foreground_classes(class_names)
    maps = {"pred": as_label_array(pred, name="pred"), "label": as_label_array(label, name="label")}
    check_grid(maps["pred"], maps["label"], spacing_mm=spacing_mm)
    check_tolerance(tolerance_mm)
    boxes = {key: class_boxes(volume, names, name=key, setting="class_names") for key, volume in maps.items()}
    rows = []
    for class_id, organ in names.items():
        found = [boxes[key][class_id] for key in boxes if class_id in boxes[key]]
        if found:
            box = union_box(found, margin=1)
            masks = [volume[box] == class_id for volume in maps.values()]
            scores = _mask_scores(*masks, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
            rows.append({"organ": organ, "class_id": class_id, **scores})
    return rows


def check_grid(pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float]) -> None:
    """Refuse what cannot be compared.

    Args:
        pred: prediction, (X, Y, Z).
        label: reference of the same shape.
        spacing_mm: voxel size in mm along each axis.

    Raises:
        InputError: shapes differ or are not three-dimensional, or the spacing is impossible.
    """
    if pred.shape != label.shape or pred.ndim != 3:
        raise InputError(
            f"pred has shape {pred.shape} and label {label.shape}, but both have to be (X, Y, Z) on one "
            "grid: resample the prediction to the label's grid first."
        )
    if len(spacing_mm) != 3 or not np.all(np.isfinite(spacing_mm)) or min(spacing_mm) <= 0:
        raise InputError(f"spacing_mm is {tuple(spacing_mm)}: give three voxel sizes above 0 mm.")


def check_tolerance(tolerance_mm: float) -> None:
    """Refuse a tolerance that is not a finite number of 0 mm or more.

    Raises:
        InputError: see above.
    """
    if not isinstance(tolerance_mm, Real) or not 0 <= tolerance_mm < np.inf:
        raise InputError(f"tolerance_mm is {tolerance_mm!r}: give a finite tolerance of 0 mm or more.")


def class_boxes(volume: np.ndarray, classes: Collection[int], *, name: str, setting: str) -> dict[int, Box]:
    """Find the bounding box of each class in a label map in one pass.

    Args:
        volume: class ids, (X, Y, Z).
        classes: the class ids that may occur, besides 0.
        name: what the label map is, for the message.
        setting: what lists `classes`, for the message.

    Returns:
        Class id to bounding box, of the classes that occur.

    Raises:
        InputError: another class occurs.
    """
    in_range = volume.min(initial=0) >= 0 and volume.max(initial=0) <= max(classes, default=0)
    found = find_objects(volume) if in_range else []  # one entry for each value up to the highest
    boxes = {index: box for index, box in enumerate(found, start=1) if box is not None}
    unnamed = (boxes.keys() if in_range else set(np.unique(volume).tolist())) - {0, *classes}
    if unnamed:
        listed = sorted(unnamed)[:_LISTED]
        raise InputError(f"{name} holds the classes {listed}, which {setting} lacks: name or remap them.")
    return boxes


def union_box(boxes: Sequence[Box], *, margin: int) -> Box:
    """Join bounding boxes and widen them by `margin` voxels, of which finding edges needs one; slices clip above."""
    return tuple(
        slice(max(0, min(side.start for side in sides) - margin), max(side.stop for side in sides) + margin)
        for sides in zip(*boxes, strict=True)
    )


def _mask_scores(
    pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """Score one organ's masks (x, y, z), of which at least one is not empty."""
    surface = {"hd95_mm": np.nan, "asd_mm": np.nan, "surface_dice": 0.0}
    if pred.any() and label.any():
        pred_to_label, label_to_pred = surface_distances_mm(pred, label, spacing_mm=spacing_mm)
        both = np.concatenate([pred_to_label, label_to_pred])
        surface = {
            "hd95_mm": hd95_mm(pred_to_label, label_to_pred),
            "asd_mm": float(both.mean(dtype=np.float64)),
            # compared in float32 as MONAI does: 20 steps of 0.1 mm are then within a tolerance of 2 mm
            "surface_dice": float(np.mean(both <= float(tolerance_mm))),
        }
    return {"dice": dice(pred, label), **surface, **volumes_ml(pred, label, spacing_mm=spacing_mm)}


def dice(pred: np.ndarray, label: np.ndarray) -> float:
    """Return 2 |P and L| / (|P| + |L|) of two masks, of which at least one is not empty."""
    size = int(np.count_nonzero(pred)) + int(np.count_nonzero(label))
    return 2.0 * int(np.count_nonzero(pred & label)) / size


def volumes_ml(pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Return the volumes of two masks as the columns `volume_ml_pred` and `volume_ml_label`."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    masks = {"pred": pred, "label": label}
    return {f"volume_ml_{name}": int(np.count_nonzero(mask)) * voxel_ml for name, mask in masks.items()}


def surface_distances_mm(
    pred: np.ndarray, label: np.ndarray, *, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Measure from each edge voxel of one mask to the nearest edge voxel of the other; see `organ_scores`.

    Args:
        pred: predicted mask, not empty.
        label: reference mask, not empty.
        spacing_mm: voxel size in mm along each axis.

    Returns:
        Distances from the prediction's edge voxels, and from those of the reference.

    Shape:
        Both masks: (x, y, z), a part of the volume with one voxel of margin inside the volume.
    """
    edges_pred, edges_label = get_mask_edges(pred, label, crop=False)
    pred_to_label = get_surface_distance(edges_pred, edges_label, spacing=spacing_mm)
    return pred_to_label, get_surface_distance(edges_label, edges_pred, spacing=spacing_mm)


def hd95_mm(pred_to_label: np.ndarray, label_to_pred: np.ndarray) -> float:
    """Return the larger 95th percentile (linear interpolation) of two directed sets of distances in mm."""
    return float(max(np.percentile(distances.astype(np.float64), 95) for distances in (pred_to_label, label_to_pred)))


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
    return with_mean_row(table.reset_index("class_id", drop=True), counts=COUNTS)


def with_mean_row(table: pd.DataFrame, *, counts: Sequence[str]) -> pd.DataFrame:
    """Turn the index of a summary into its first column and add the row "mean".

    Args:
        table: a row per organ or region, which its index names.
        counts: columns of whole numbers, whose last row is their sum.

    Returns:
        The table; of the other columns the last row is the mean, NaN left out.
    """
    name = table.index.name
    table = table.reset_index().astype(dict.fromkeys(counts, int))
    last = table.drop(columns=name).mean().to_dict() | {count: int(table[count].sum()) for count in counts}
    return pd.concat([table, pd.DataFrame([{name: "mean", **last}])], ignore_index=True)
