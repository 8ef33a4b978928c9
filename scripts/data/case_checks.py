"""Checking the files of all cases before a training starts, and the label of each case when it is loaded."""

from __future__ import annotations

import hashlib
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
ImageReader = Callable[[Mapping[str, Any], str], StoredVolume]
"""Takes a case and a file of its image; raises an `InputError` if the case cannot use it."""
_LISTED_VALUES = 8


def check_cases(
    items: Sequence[Mapping[str, Any]],
    *,
    num_classes: int | None = None,
    label_sets: Sequence[LabelSet] | None = None,
    check_image: ImageCheck | None = None,
    read_image: ImageReader | None = None,
    allow_copies: bool = False,
    workers: int = 4,
) -> None:
    """Read all images and labels to their end and report every problem that would stop a training.

    An image must pass the checks of `scripts.io.loading.LoadVolumed`. So must its label, which must also lie on the
    same grid and hold the whole numbers of one set. A label that is all background only gives a warning. No two images
    may hold the same voxels: they are copies of one file under two names.

    Args:
        items: cases with `image`, a path or several, and optionally `label` and `ignored_label`, an additional value
            that the label may hold, for voxels that the loss ignores.
        num_classes: number of label values including the background; the set is 0..`num_classes` - 1.
        label_sets: the sets of values that a label may hold, instead of `num_classes`.
        check_image: checks the files of an image together, such as four sequences.
        read_image: reads a file of an image, in place of `read_nifti`.
        allow_copies: whether different cases may hold the same image.
        workers: threads, each with one volume in memory at a time; zlib releases the GIL.

    Raises:
        InputError: lists all problems, one per line, the path first.
    """
    if not label_sets and (num_classes or 0) < 2:
        raise InputError(f"num_classes is {num_classes or 0}; set it to the number of labels including the background")
    sets = label_sets or [range(num_classes or 0)]
    reading = {"check_image": check_image or _first_grid, "read_image": read_image or _read_image}
    check = partial(_case_problems, label_sets=sets, **reading)
    with ThreadPoolExecutor(workers) as pool, progress_bar(total=len(items), desc="checking", unit="case") as bar:
        problems, digests = [], []
        for found, images in pool.map(check, items):
            problems += found
            digests.append(images)
            bar.update()
    problems += _copies(digests, allow_copies=allow_copies)
    fix = "correct or replace the files, leave the cases out of the datalist, or set check_data to false"
    raise_all(problems, f"check of {len(items)} cases", fix)


def image_files(item: Mapping[str, Any]) -> list[str]:
    """List the files of the image of an item."""
    return [item["image"]] if isinstance(item["image"], str) else list(item["image"])


def _read_image(_: Mapping[str, Any], path: str) -> StoredVolume:
    return read_nifti(path)


def _first_grid(_: Sequence[str], grids: Sequence[Grid | None]) -> tuple[list[str], Grid | None]:
    """Accept an image; its label must lie on the grid of its first file."""
    return [], grids[0]


def _case_problems(
    item: Mapping[str, Any], label_sets: Sequence[LabelSet], check_image: ImageCheck, read_image: ImageReader
) -> tuple[list[str], dict[str, bytes]]:
    """List the problems of a case, and the digest of each image that has none."""
    problems: list[str] = []
    digests: dict[str, bytes] = {}
    paths = image_files(item)
    grids = [_image_grid(path, partial(read_image, item), problems, digests) for path in paths]
    found, grid = check_image(paths, grids)
    problems += found
    if "label" in item:
        path, ignored = item["label"], item.get("ignored_label")
        try:
            found = label_problems(read_nifti(path), grid, label_sets, ignored=ignored, path=path)
            problems += [f"{path}: {problem}" for problem in found]
        except InputError as error:
            problems.append(str(error))
    return problems, digests


def _image_grid(
    path: str, read: Callable[[str], StoredVolume], problems: list[str], digests: dict[str, bytes]
) -> Grid | None:
    """Check an image and return its grid, or None if it has a problem."""
    try:
        image = read(path)
        check_intensities(image, path)
    except InputError as error:
        problems.append(str(error))
        return None
    digest = hashlib.sha256(repr((image.stored.shape, image.stored.dtype, image.slope, image.inter)).encode())
    digest.update(np.ascontiguousarray(image.stored.T))
    digests[path] = digest.digest()
    return image.grid


def _copies(digests: Sequence[Mapping[str, bytes]], *, allow_copies: bool) -> list[str]:
    """List the images that hold the voxels of an earlier one, given the digests of each case."""
    first: dict[bytes, tuple[int, str]] = {}
    problems = []
    for case, images in enumerate(digests):
        for path, digest in images.items():
            other_case, other = first.setdefault(digest, (case, path))
            if other != path and (other_case == case or not allow_copies):
                problems.append(f"{path}: holds the same voxels as {other}; replace one of them")
    return problems


def label_problems(
    label: StoredVolume,
    grid: Grid | None,
    label_sets: Sequence[LabelSet],
    *,
    path: str,
    ignored: int | None = None,
) -> list[str]:
    """List the problems of a label that could be read, without its path; warn if it is all background.

    Args:
        label: the label map.
        grid: the grid that it must lie on; None if that is unknown.
        label_sets: the sets of values that it may hold.
        path: of the label, for the warning.
        ignored: additional value that it may hold, for voxels that the loss ignores.
    """
    problems = []
    sets = label_sets if ignored is None else [[*values, ignored] for values in label_sets]
    if grid is not None and (mismatch := describe_mismatch(label.grid, grid)):
        problems.append(f"does not lie on the grid of its image: {mismatch}; resample it to that grid")
    fractional, outside, background_only = _bad_values(label, sets)
    if fractional.size:
        problems.append(f"label values {_list_values(fractional)} are not whole numbers")
    if all(values.size for values in outside):
        bad = [f"{_list_values(v)} are outside {_list_set(s)}" for v, s in zip(outside, sets, strict=True)]
        problems.append(f"label values {', and '.join(bad)}")
    if background_only:
        logger.warning("%s: the label is all background", path)
    return problems


def _bad_values(label: StoredVolume, label_sets: Sequence[LabelSet]) -> tuple[np.ndarray, list[np.ndarray], bool]:
    """Return fractional values, values outside each set, and whether all voxels are background."""
    fractional, outside = np.array([], np.float64), [np.array([], np.float64) for _ in label_sets]
    background_only = True
    slowest_axis = int(np.argmax(label.stored.strides))
    for plane in np.moveaxis(label.stored, slowest_axis, 0):  # a float64 copy of the whole volume would take gigabytes
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
    """Return the mask of values outside a set; a table of the values in between is faster than `np.isin`."""
    low, high = min(label_set), max(label_set)
    outside = ~((values >= low) & (values <= high))
    if high - low + 1 > len(set(label_set)):
        is_gap = np.ones(high - low + 1, bool)
        is_gap[np.subtract(list(label_set), low)] = False
        outside |= is_gap[np.where(outside, 0, values - low).astype(np.intp)]
    return outside


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
