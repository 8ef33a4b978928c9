"""One case in, one case out: what every handler needs to know about the items of an evaluator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from ignite.engine import Engine, EventEnum, Events

from scripts.files import atomic_path
from scripts.names import stem

AFFINE_TOLERANCE_MM = 0.1

Collected = dict[str, tuple[str, Any]]
"""Case name to (source file, what a handler remembers of the case)."""


class GridArray(NamedTuple):
    """A volume (X, Y, Z) and the (4, 4) affine from its voxel indices to mm."""

    array: np.ndarray
    affine: np.ndarray


def source_path(item: Mapping[str, Any], *, key: str = "image") -> str:
    """Return the file or DICOM folder that an image of a decollated case was read from; "" if unknown."""
    meta = getattr(item.get(key), "meta", {})
    return str(meta.get("filename_or_obj", ""))


def case_name(item: Mapping[str, Any]) -> str:
    """Name a decollated case, for file names and table rows.

    Args:
        item: one case of `engine.state.batch`.

    Returns:
        `item["case"]` if there is one, else the image's file name without its suffix, or its folder's name.

    Raises:
        ValueError: the case has neither a name nor a file.
    """
    if item.get("case"):
        return str(item["case"])
    source = source_path(item)
    if not source:
        raise ValueError('a case has neither "case" nor a file name: add "case" to the items of the datalist.')
    return stem(source).removesuffix(".dcm")


def decollated(engine: Engine) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (batch item, output item) of each case of the iteration; nothing after a failed case.

    Args:
        engine: a MONAI evaluator with `decollate=True`, at ITERATION_COMPLETED.

    Raises:
        ValueError: batch and output are not lists of the same cases.
    """
    batch, output = engine.state.batch, engine.state.output
    if isinstance(output, list) and not output:
        return
    if not isinstance(batch, list) or not isinstance(output, list) or len(batch) != len(output):
        kinds = f"{type(batch).__name__} and {type(output).__name__}"
        raise ValueError(f"batch and output ({kinds}) are no lists of the same cases: set decollate to true.")
    yield from zip(batch, output, strict=True)


def grid_array(volume: Any, *, name: str) -> GridArray:
    """Take array and affine of an image of one channel.

    Args:
        volume: a MetaTensor on any device.
        name: named in the messages.

    Shape:
        (1, X, Y, Z) becomes (X, Y, Z).

    Raises:
        ValueError: `volume` is no image with an affine, or not of one channel.
    """
    if not isinstance(getattr(volume, "affine", None), torch.Tensor):
        kind = type(volume).__name__
        raise ValueError(f"{name} is {kind}, not an image with an affine: load it or correct the key.")
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise ValueError(f"{name} has shape {tuple(volume.shape)}, not (1, X, Y, Z): reduce it to a channel.")
    array = volume[0].detach().cpu().numpy()
    return GridArray(np.asarray(array), volume.affine.detach().cpu().numpy().astype(np.float64))


def label_array(item: Mapping[str, Any], key: str, *, case: str) -> GridArray:
    """Take a label map out of a decollated case, as integers.

    Args:
        item: one case of `engine.state.output`.
        key: key of the label map, a MetaTensor (1, X, Y, Z).
        case: named in the messages.

    Raises:
        ValueError: the label map is missing, without an affine, not of one channel or not of whole numbers.
    """
    name = f'{case}: "{key}"'
    volume = grid_array(item.get(key), name=name)
    return GridArray(whole_numbers(volume.array, name=name), volume.affine)


def same_grid(one: GridArray, other: GridArray) -> bool:
    """Tell whether two volumes have the same shape, and the same affine within 0.1 mm."""
    same_shape = one.array.shape == other.array.shape
    return same_shape and np.allclose(one.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE_MM)


def check_same_grid(pred: GridArray, other: GridArray, *, case: str, name: str = "label") -> None:
    """Refuse a prediction whose voxels are not those of another volume of its case.

    Args:
        pred: the prediction.
        other: what it is compared with.
        case: named in the message.
        name: what `other` is.

    Raises:
        ValueError: see `same_grid`.
    """
    if pred.array.shape != other.array.shape:
        raise ValueError(
            f"{case}: the prediction has shape {pred.array.shape} but the {name} {other.array.shape}: keep "
            f"the {name} as it was loaded and bring the prediction back to the image's grid."
        )
    if not same_grid(pred, other):
        affines = [np.round(volume.affine[:3], 4).tolist() for volume in (pred, other)]
        raise ValueError(
            f"{case}: prediction and {name} lie differently in the patient, their affines are {affines[0]} "
            f"and {affines[1]}: keep the {name} as it was loaded, or correct the wrong header."
        )


def whole_numbers(volume: np.ndarray | torch.Tensor, *, name: str) -> np.ndarray:
    """Return a label map as integers, without a copy if it has them already.

    Args:
        volume: class ids, of any dtype.
        name: named in the message.

    Raises:
        ValueError: a voxel is not a whole number.
    """
    array = volume.detach().cpu().numpy() if isinstance(volume, torch.Tensor) else np.asarray(volume)
    if np.issubdtype(array.dtype, np.integer):
        return array
    whole = array.astype(np.int32)
    if array.dtype != bool and not np.array_equal(whole, array):
        value = float(array[whole != array][0])
        raise ValueError(f"{name} holds {value:g}, which is no class id: interpolate label maps as nearest.")
    return whole


class CaseHandler:
    """Base of handlers that keep something of each case of an evaluator until its epoch ends.

    A handler calls `remember` for each case at its `event`, and `gather_cases` in `_finish`.
    """

    event: EventEnum = Events.ITERATION_COMPLETED

    def __init__(self) -> None:
        self._cases: Collected = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(self.event, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _reset(self) -> None:
        """Forget the cases of an earlier epoch."""
        self._cases = {}

    def __call__(self, engine: Engine) -> None:
        """Keep what belongs to the cases of one iteration."""
        raise NotImplementedError

    def _finish(self, engine: Engine) -> None:
        """Bring the cases of all ranks together and write them."""
        raise NotImplementedError


def write_table(table: pd.DataFrame, path: Path, *, decimals: int = 6) -> None:
    """Write a table as CSV, so that a reader finds either the old or the whole new file."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format=f"%.{decimals}f", lineterminator="\n")


def remember(collected: Collected, case: str, *, source: str, value: Any) -> None:
    """Keep what belongs to a case; the same case again, as a distributed sampler repeats it, replaces it.

    Args:
        collected: changed in place.
        case: name of the case.
        source: file that the case was read from.
        value: what to keep.

    Raises:
        ValueError: another file has the same case name.
    """
    known = collected.get(case, (source, None))[0]
    if known != source:
        raise ValueError(
            f'{known} and {source} are both named "{case}", so that one would replace the other: '
            'add a distinct "case" to each item of the datalist.'
        )
    collected[case] = (source, value)


def gather_cases(own: Collected) -> Collected:
    """Merge what each rank collected; every rank has to call this.

    Args:
        own: the cases of this rank.

    Returns:
        The cases of all ranks, each once, sorted by name.

    Raises:
        ValueError: two files have the same case name.
    """
    parts: list[Any] = [own]
    if dist.is_available() and dist.is_initialized():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
    merged: Collected = {}
    for part in parts:
        for case, (source, value) in part.items():
            remember(merged, case, source=source, value=value)
    return dict(sorted(merged.items()))


def is_rank0() -> bool:
    """Tell whether this process writes the shared files."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
