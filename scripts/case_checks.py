"""Read every case of a data set before a training does, and say at once all that it would stumble over."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.cases import AFFINE_TOLERANCE_MM
from scripts.errors import raise_all
from scripts.files import StoredVolume, read_nifti
from scripts.grids import Grid
from scripts.sequences import REFERENCE, check_sequences, grid_problem

logger = logging.getLogger(__name__)

LabelSet = Sequence[int]
_LISTED_VALUES = 8


def check_cases(
    items: Sequence[Mapping[str, Any]],
    *,
    num_classes: int | None = None,
    label_sets: Sequence[LabelSet] | None = None,
    ignored: Mapping[str, int] | None = None,
    resample: bool = False,
    workers: int = 4,
) -> None:
    """Read every image and label to its end, and name everything that training would stumble over, at once.

    An image must be a finite 3-D NIfTI volume; its label too, on the same grid (affines equal to 0.1 mm), with
    whole values of one set. A label that is all background is only warned about. The files of an image in several
    must be the four sequences in their order, on one grid unless they are to be resampled.

    Args:
        items: cases with ``image`` and, where there is one, ``label``.
        num_classes: number of label values, background included: the set 0..``num_classes`` - 1.
        label_sets: the sets of values that a label may have; instead of ``num_classes``.
        ignored: label file to a further value that it may hold, for voxels that the loss leaves out.
        resample: whether the files of an image may lie on different grids.
        workers: threads; each holds one volume in memory at a time. Threads do, since zlib releases the GIL.

    Raises:
        ValueError: all problems, one per line, the path first.
    """
    if not label_sets and (num_classes or 0) < 2:
        raise ValueError(f"num_classes is {num_classes or 0}; set it to the number of labels, background included")
    sets = label_sets or [range(num_classes or 0)]
    check = partial(_case_problems, label_sets=sets, ignored=ignored or {}, resample=resample)
    with ThreadPoolExecutor(workers) as pool:
        bar = tqdm(pool.map(check, items), total=len(items), desc="checking cases", unit="case", disable=None)
        problems = [problem for found in bar for problem in found]
    mend = "mend or replace the files, drop the cases from the datalist, or skip the check with --check_data false"
    raise_all(problems, f"check of {len(items)} cases", mend)


def _case_problems(
    item: Mapping[str, Any], label_sets: Sequence[LabelSet], ignored: Mapping[str, int], resample: bool
) -> list[str]:
    problems: list[str] = []
    paths = [item["image"]] if isinstance(item["image"], str) else item["image"]
    grids = {path: _image_grid(path, problems) for path in paths}
    reference = paths[0]
    if len(paths) > 1:
        reference = paths[REFERENCE]
        problems += _sequence_problems(paths, grids, resample)
    if "label" in item:
        if item["label"] in ignored:
            label_sets = [[*values, ignored[item["label"]]] for values in label_sets]
        try:
            found = _label_problems(read_nifti(item["label"]), grids[reference], label_sets, path=item["label"])
            problems += [f"{item['label']}: {problem}" for problem in found]
        except ValueError as error:
            problems.append(f"{item['label']}: {error}")
    return problems


def _image_grid(path: str, problems: list[str]) -> Grid | None:
    """Read an image to its end and return its grid; None where it cannot be read."""
    try:
        image = read_nifti(path)
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None
    # NaN and infinity always come through as the smallest or the largest value.
    ends = np.array([image.stored.min(), image.stored.max()], np.float64) * image.slope + image.inter
    if not np.isfinite(ends).all():
        problems.append(f"{path}: holds NaN or infinite values")
    return Grid(image.stored.shape, image.affine)


def _sequence_problems(paths: Sequence[str], grids: Mapping[str, Grid | None], resample: bool) -> list[str]:
    try:
        check_sequences(paths)
    except ValueError as error:
        return [str(error)]
    if resample or None in grids.values():
        return []
    problem = grid_problem(paths, [grids[path] for path in paths])
    return [problem] if problem else []


def _label_problems(label: StoredVolume, grid: Grid | None, label_sets: Sequence[LabelSet], *, path: str) -> list[str]:
    problems = []
    if grid is not None and label.stored.shape != grid.shape:
        problems.append(f"has shape {label.stored.shape}, its image {grid.shape}")
    if grid is not None and (gap := np.abs(label.affine - grid.affine).max()) > AFFINE_TOLERANCE_MM:
        problems.append(f"has an affine up to {gap:.3g} mm from its image's; resample it on the image's grid")
    fractional, outside, background_only = _unfit_values(label, label_sets)
    if fractional.size:
        problems.append(f"label values {_list_values(fractional)} are not whole numbers")
    if all(values.size for values in outside):
        unfit = [f"{_list_values(v)} are outside {_list_set(s)}" for v, s in zip(outside, label_sets, strict=True)]
        problems.append(f"label values {', and '.join(unfit)}")
    if background_only:
        logger.warning("%s: the label is all background", path)
    return problems


def _unfit_values(label: StoredVolume, label_sets: Sequence[LabelSet]) -> tuple[np.ndarray, list[np.ndarray], bool]:
    """Return the fractional values, those outside each set, and whether all is background."""
    fractional, outside = np.array([], np.float64), [np.array([], np.float64) for _ in label_sets]
    background_only = True
    # By plane: float temporaries of the whole would be gigabytes.
    for plane in np.moveaxis(label.stored, -1, 0):
        values = plane.astype(np.float64) * label.slope + label.inter
        whole = values == np.rint(values)
        fractional = _smallest(fractional, values[~whole])
        outside = [
            _smallest(known, values[whole & _outside(values, label_set)])
            for known, label_set in zip(outside, label_sets, strict=True)
        ]
        background_only = background_only and not values.any()
    return fractional, outside, background_only


def _outside(values: np.ndarray, label_set: LabelSet) -> np.ndarray:
    low, high = min(label_set), max(label_set)
    has_gaps = high - low + 1 > len(set(label_set))
    return ~np.isin(values, list(label_set)) if has_gaps else (values < low) | (values > high)


def _smallest(known: np.ndarray, more: np.ndarray) -> np.ndarray:
    return np.unique(np.concatenate([known, more]))[: _LISTED_VALUES + 1] if more.size else known


def _list_values(values: np.ndarray) -> str:
    listed = ", ".join(f"{value:.10g}" for value in values[:_LISTED_VALUES])
    return f"{listed}, ..." if values.size > _LISTED_VALUES else listed


def _list_set(label_set: LabelSet) -> str:
    if isinstance(label_set, range):
        return f"{label_set.start}..{label_set.stop - 1}"
    return ", ".join(map(str, label_set))
