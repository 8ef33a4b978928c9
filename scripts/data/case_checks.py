"""Checking the files of all cases before a training starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from scripts.common.errors import InputError, raise_all
from scripts.common.grids import Grid, describe_mismatch
from scripts.common.progress import progress_bar
from scripts.io.nifti import StoredVolume, check_intensities, read_nifti

logger = logging.getLogger(__name__)

LabelSet = Sequence[int]
ImageCheck = Callable[[Sequence[str], Sequence[Grid | None]], tuple[list[str], Grid | None]]
"""Takes the files of one image and their grids, None for unreadable ones; returns the problems found, and the grid that
the label must lie on."""
_LISTED_VALUES = 8


def check_cases(
    items: Sequence[Mapping[str, Any]],
    *,
    num_classes: int | None = None,
    label_sets: Sequence[LabelSet] | None = None,
    ignored: Mapping[str, int] | None = None,
    check_image: ImageCheck | None = None,
    workers: int = 4,
) -> None:
    """Read all images and labels to their end and report every problem that would stop a training.

    An image must pass the checks of `scripts.io.loading.LoadVolumed`. So must its label, which must also lie on the
    same grid and hold the whole numbers of one set. A label that is all background only gives a warning.

    Args:
        items: cases with `image`, a path or several, and optionally `label`.
        num_classes: number of label values including the background; the set is 0..`num_classes` - 1.
        label_sets: the sets of values that a label may hold, instead of `num_classes`.
        ignored: label file to an additional value that it may hold, for voxels that the loss ignores.
        check_image: checks the files of an image together, such as four sequences.
        workers: threads, each with one volume in memory at a time; zlib releases the GIL.

    Raises:
        InputError: lists all problems, one per line, the path first.
    """
    if not label_sets and (num_classes or 0) < 2:
        raise InputError(f"num_classes is {num_classes or 0}; set it to the number of labels including the background")
    sets = label_sets or [range(num_classes or 0)]
    check = partial(_case_problems, label_sets=sets, ignored=ignored or {}, check_image=check_image or _first_grid)
    with ThreadPoolExecutor(workers) as pool, progress_bar(total=len(items), desc="checking", unit="case") as bar:
        problems = []
        for found in pool.map(check, items):
            problems += found
            bar.update()
    fix = "correct or replace the files, leave the cases out of the datalist, or set check_data to false"
    raise_all(problems, f"check of {len(items)} cases", fix)


def image_files(item: Mapping[str, Any]) -> list[str]:
    """List the files of the image of an item."""
    return [item["image"]] if isinstance(item["image"], str) else list(item["image"])


def _first_grid(_: Sequence[str], grids: Sequence[Grid | None]) -> tuple[list[str], Grid | None]:
    """Accept an image; its label must lie on the grid of its first file."""
    return [], grids[0]


def _case_problems(
    item: Mapping[str, Any], label_sets: Sequence[LabelSet], ignored: Mapping[str, int], check_image: ImageCheck
) -> list[str]:
    """List the problems of a case."""
    problems: list[str] = []
    paths = image_files(item)
    grids = [_image_grid(path, problems) for path in paths]
    found, grid = check_image(paths, grids)
    problems += found
    if "label" in item:
        if item["label"] in ignored:
            label_sets = [[*values, ignored[item["label"]]] for values in label_sets]
        try:
            found = _label_problems(read_nifti(item["label"]), grid, label_sets, path=item["label"])
            problems += [f"{item['label']}: {problem}" for problem in found]
        except InputError as error:
            problems.append(str(error))
    return problems


def _image_grid(path: str, problems: list[str]) -> Grid | None:
    """Check an image and return its grid, or None if it has a problem."""
    try:
        image = read_nifti(path)
        check_intensities(image, path)
    except InputError as error:
        problems.append(str(error))
        return None
    return image.grid


def _label_problems(label: StoredVolume, grid: Grid | None, label_sets: Sequence[LabelSet], *, path: str) -> list[str]:
    """List the problems of a label that could be read, without its path."""
    problems = []
    if grid is not None and (mismatch := describe_mismatch(label.grid, grid)):
        problems.append(f"does not lie on the grid of its image: {mismatch}; resample it to that grid")
    fractional, outside, background_only = _bad_values(label, label_sets)
    if fractional.size:
        problems.append(f"label values {_list_values(fractional)} are not whole numbers")
    if all(values.size for values in outside):
        bad = [f"{_list_values(v)} are outside {_list_set(s)}" for v, s in zip(outside, label_sets, strict=True)]
        problems.append(f"label values {', and '.join(bad)}")
    if background_only:
        logger.warning("%s: the label is all background", path)
    return problems


def _bad_values(label: StoredVolume, label_sets: Sequence[LabelSet]) -> tuple[np.ndarray, list[np.ndarray], bool]:
    """Return fractional values, values outside each set, and whether all voxels are background."""
    fractional, outside = np.array([], np.float64), [np.array([], np.float64) for _ in label_sets]
    background_only = True
    for plane in np.moveaxis(label.stored, -1, 0):  # a float64 copy of the whole volume would take gigabytes
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
    """Return the mask of values outside a set; comparing with both ends is faster than `np.isin`."""
    low, high = min(label_set), max(label_set)
    has_gaps = high - low + 1 > len(set(label_set))
    return ~np.isin(values, list(label_set)) if has_gaps else (values < low) | (values > high)


def _smallest(known: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Merge values and keep the smallest, one more than a message lists."""
    return np.unique(np.concatenate([known, more]))[: _LISTED_VALUES + 1] if more.size else known


def _list_values(values: np.ndarray) -> str:
    listed = ", ".join(f"{value:.10g}" for value in values[:_LISTED_VALUES])
    return f"{listed}, ..." if values.size > _LISTED_VALUES else listed


def _list_set(label_set: LabelSet) -> str:
    if isinstance(label_set, range):
        return f"{label_set.start}..{label_set.stop - 1}"
    return ", ".join(map(str, label_set))
