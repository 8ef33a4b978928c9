"""The cases of an evaluator as handlers see them: names, sources, label maps, records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, EventEnum, Events

from scripts.common.errors import InputError
from scripts.common.grids import GridArray
from scripts.common.label_maps import as_label_array
from scripts.common.names import stem

CaseRecords = dict[str, tuple[str, Any]]
"""Case name to (source file, what a handler recorded)."""


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
        InputError: the case has neither a name nor a file.
    """
    if item.get("case"):
        return str(item["case"])
    source = source_path(item)
    if not source:
        raise InputError('a case has neither "case" nor a file name: add "case" to the items of the datalist.')
    return stem(source).removesuffix(".dcm")


def decollated(engine: Engine) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (batch item, output item) of each case of the iteration; nothing after a failed case.

    Args:
        engine: a MONAI evaluator with `decollate=True`, at MODEL_COMPLETED or ITERATION_COMPLETED.

    Raises:
        InputError: batch and output are not lists of the same cases.
    """
    batch, output = engine.state.batch, engine.state.output
    if isinstance(output, list) and not output:
        return
    if not isinstance(batch, list) or not isinstance(output, list) or len(batch) != len(output):
        kinds = f"{type(batch).__name__} and {type(output).__name__}"
        raise InputError(f"batch and output ({kinds}) are not lists of the same cases: set decollate to true.")
    yield from zip(batch, output, strict=True)


def grid_array(volume: Any, *, name: str) -> GridArray:
    """Take array and affine of an image of one channel.

    Args:
        volume: a MetaTensor on any device.
        name: named in the messages.

    Shape:
        (1, X, Y, Z) becomes (X, Y, Z).

    Raises:
        InputError: `volume` is not an image with an affine, or not of one channel.
    """
    if not isinstance(getattr(volume, "affine", None), torch.Tensor):
        kind = type(volume).__name__
        raise InputError(f"{name} is {kind}, not an image with an affine: load it or correct the key.")
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise InputError(f"{name} has shape {tuple(volume.shape)}, need (1, X, Y, Z): reduce it to one channel.")
    array = volume[0].detach().cpu().numpy()
    return GridArray(np.asarray(array), volume.affine.detach().cpu().numpy().astype(np.float64))


def label_array(item: Mapping[str, Any], key: str, *, case: str) -> GridArray:
    """Take a label map out of a decollated case, as integers.

    Args:
        item: one case of `engine.state.output`.
        key: key of the label map, a MetaTensor (1, X, Y, Z).
        case: named in the messages.

    Raises:
        InputError: the label map is missing, without an affine, not of one channel or not of whole numbers.
    """
    name = f'{case}: "{key}"'
    volume = grid_array(item.get(key), name=name)
    return GridArray(as_label_array(volume.array, name=name), volume.affine)


class CaseHandler:
    """Base of handlers that record something of each case until the epoch ends.

    A handler calls `record_case` for each case at its `event`, and `gather_cases` in `_finish`.
    """

    event: EventEnum = Events.ITERATION_COMPLETED

    def __init__(self) -> None:
        self._cases: CaseRecords = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(self.event, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _reset(self) -> None:
        """Forget the cases of an earlier epoch."""
        self._cases = {}

    def __call__(self, engine: Engine) -> None:
        """Record the cases of one iteration."""
        raise NotImplementedError

    def _finish(self, engine: Engine) -> None:
        """Gather the cases of all ranks and write them."""
        raise NotImplementedError


def record_case(records: CaseRecords, case: str, *, source: str, value: Any) -> None:
    """Record a case; a case that a distributed sampler repeats replaces its record.

    Args:
        records: changed in place.
        case: name of the case.
        source: file that the case was read from.
        value: what to record.

    Raises:
        InputError: another file has the same case name.
    """
    known = records.get(case, (source, None))[0]
    if known != source:
        raise InputError(
            f'{known} and {source} are both named "{case}": one result would overwrite the other; '
            'add a distinct "case" to each item of the datalist.'
        )
    records[case] = (source, value)


def gather_cases(own: CaseRecords) -> CaseRecords:
    """Merge the records of all ranks; every rank has to call this.

    Args:
        own: the cases of this rank.

    Returns:
        The cases of all ranks, each once, sorted by name.

    Raises:
        InputError: two files have the same case name.
    """
    parts: list[Any] = [own]
    if dist.is_available() and dist.is_initialized():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
    merged: CaseRecords = {}
    for part in parts:
        for case, (source, value) in part.items():
            record_case(merged, case, source=source, value=value)
    return dict(sorted(merged.items()))
