"""Datasets that cache the result of the deterministic transforms in memory, in files, or not at all."""

from __future__ import annotations

import logging
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, RandomizableTrait, Transform, reset_ops_id
from monai.utils import LazyAttr, MetaKeys, SpaceKeys, TraceKeys

from scripts.common.errors import InputError
from scripts.common.files import atomic_path, require_writable
from scripts.common.fingerprint import file_state, fingerprint
from scripts.common.ranks import is_rank0
from scripts.inference.evaluator import CaseDataset

logger = logging.getLogger(__name__)

KINDS = ("cache", "persistent", "plain")
LEFTOVER_AGE_S = 3600.0
# What metadata holds besides tensors: arrays of numbers and text, and MONAI's enums. Loading them runs no code.
_NUMPY_DTYPES = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDSU"]
_SAFE_GLOBALS = [np.ndarray, np.dtype, *_NUMPY_DTYPES, np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
_SAFE_GLOBALS += [TraceKeys, MetaKeys, SpaceKeys, LazyAttr]


def make_dataset(
    data: Sequence[Mapping[str, Any]],
    transform: Compose,
    *,
    kind: str = "cache",
    cache_dir: str | Path = "cache",
    cache_rate: float = 1.0,
    num_workers: int = 0,
    report_failures: bool = False,
) -> Dataset:
    """Make a dataset that caches the result of the transforms before the first random one.

    Args:
        data: cases of a datalist.
        transform: deterministic transforms, then random ones.
        kind: `cache` keeps prepared cases in the memory of each process, `persistent` in files in `cache_dir`,
            `plain` prepares them every time.
        cache_dir: folder of the files of `persistent`; runs, processes and data sets may share it.
        cache_rate: fraction of the cases that `cache` keeps; the others are prepared every time.
        num_workers: threads that fill the memory of `cache`.
        report_failures: give the reason in place of a case that cannot be prepared, for
            `scripts.inference.evaluator.CaseEvaluator`. It takes each case once, so that `cache` then is `plain`.

    Raises:
        InputError: `kind` is unknown, `cache_rate` is outside 0..1, `num_workers` is negative, or see
            `PersistentCaseDataset`.

    >>> from monai.transforms import Lambdad
    >>> double = Compose([Lambdad("image", lambda image: 2 * image)])
    >>> dataset = make_dataset([{"image": 1}, {"image": 2}], double, kind="plain")
    >>> [case["image"] for case in dataset]
    [2, 4]
    """
    if kind not in KINDS:
        raise InputError(f"dataset is {kind!r}: give cache (memory), persistent (files in cache_dir) or plain.")
    if not isinstance(cache_rate, int | float) or not 0 <= cache_rate <= 1:
        raise InputError(f"cache_rate is {cache_rate!r}: give the fraction of cases to keep in memory, 0 to 1.")
    if not isinstance(num_workers, int) or num_workers < 0:
        raise InputError(f"num_workers is {num_workers!r}: give the number of workers, 0 or more.")
    persistent = PersistentCaseDataset(data, transform, cache_dir=cache_dir) if kind == "persistent" else None
    if report_failures:
        return CaseDataset(data, persistent.load if persistent else transform)
    if persistent:
        return persistent
    if kind == "plain":
        return Dataset(data, transform)
    return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=num_workers)


class PersistentCaseDataset(Dataset):
    """Cache each prepared case in a file, and prepare it again if its images or the transforms have changed.

    Files are named `cache_dir/<transforms>/<case>.pt`: `transforms` is the fingerprint of the deterministic transforms,
    `case` that of the datalist's item, with size and modification time of all files in it. Outdated files stay until
    they are deleted. Files are written atomically, so that processes may share the folder and may be killed; a
    corrupted file is written again. Files are read with `weights_only=True`. Temporary files of killed runs are removed
    when they are an hour old: by then no process is writing them any more.

    `monai.data.PersistentDataset` 1.6.1 names files by the item alone, so that a changed image is not noticed; moves
    them from the system's temporary folder, which is not atomic between disks; deletes the folder in `set_data`; and
    cannot read back files with metadata.

    Args:
        data: cases of a datalist, with paths or lists of paths.
        transform: see `make_dataset`.
        cache_dir: folder of the files; created if it is missing.

    Raises:
        InputError: the folder cannot be written, or a transform has no fingerprint.

    >>> import tempfile
    >>> from monai.transforms import EnsureTyped
    >>> dataset = PersistentCaseDataset([{"image": 1.0}], Compose([EnsureTyped("image")]), cache_dir=tempfile.mkdtemp())
    >>> float(dataset[0]["image"])
    1.0
    >>> dataset.file_of({"image": 1.0}).is_file()
    True
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Compose, *, cache_dir: str | Path) -> None:
        super().__init__(data, transform.flatten())
        steps = deterministic(self.transform)
        self.first_random = len(steps)
        try:
            name = fingerprint(steps)
        except InputError as error:
            raise InputError(f"a transform cannot be checked for changes ({error}): set dataset to cache.") from error
        self.cache_dir = require_writable(Path(cache_dir) / name, setting="cache_dir")
        _remove_old_leftovers(Path(cache_dir))
        if is_rank0():
            ready = sum(self.file_of(item).is_file() for item in data)
            logger.info("%s: %d of %d cases are prepared already", self.cache_dir, ready, len(data))

    def file_of(self, item: Mapping[str, Any]) -> Path:
        """Return the path of a prepared case, which may not exist yet."""
        states = [file_state(path) for value in item.values() for path in _paths(value)]
        return self.cache_dir / f"{fingerprint(item, states)}.pt"

    def __getitem__(self, index: int | slice | Sequence[int]) -> Any:
        """Return a case after the random transforms, or the subset of several indices."""
        if isinstance(index, slice | Sequence):
            return super().__getitem__(index)
        return self.load(self.data[index])

    def load(self, item: Mapping[str, Any]) -> Any:
        """Return a case after the random transforms."""
        return self.transform(self.prepared(item), start=self.first_random)

    def prepared(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Read a prepared case from its file, or prepare and write it."""
        path = self.file_of(item)
        content = _read(path, item)
        if content is None:
            done = self.transform(deepcopy(item), end=self.first_random, threading=True)
            reset_ops_id(done)
            content = {key: _without_base(value) for key, value in done.items()}
            _write(content, path)
        return content


def deterministic(transform: Compose) -> list[Callable]:
    """List the transforms before the first random one."""
    steps = transform.transforms
    random = [isinstance(step, RandomizableTrait) or not isinstance(step, Transform) for step in steps]
    return list(steps[: [*random, True].index(True)])


def _read(path: Path, item: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a prepared case of an item; None if it is missing, corrupted or something else."""
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():  # torch does not compare the checksums that it writes
                raise ValueError(f"{part} has another checksum")
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            content = torch.load(path, weights_only=True)
        if not isinstance(content, dict) or not content.keys() & item.keys():
            raise ValueError("not a prepared case")
        return content
    except Exception as error:  # a corrupted file can raise anything, and preparing the case again is always right
        why = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("%s: cannot be read (%s); the case is prepared again", path, why)
        return None


def _write(content: Mapping[str, Any], path: Path) -> None:
    """Write a prepared case atomically.

    Raises:
        InputError: see `atomic_path`; or the case holds objects that `weights_only=True` refuses.
    """
    with atomic_path(path) as temporary, torch.serialization.safe_globals(_SAFE_GLOBALS):
        with temporary.open("wb") as file:  # torch writes a path into the file, so that those of equal cases differ
            torch.save(dict(content), file)
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
        if unsafe:
            raise InputError(f"prepared cases hold {', '.join(unsafe)}, not only data: set dataset to cache.")


def _without_base(value: Any) -> Any:
    """Copy a tensor that is a view of a larger one: `torch.save` writes the whole storage."""
    is_part = isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes
    return value.clone() if is_part else value


def _remove_old_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed runs, whatever their transforms; recent ones may still be written."""
    for path in folder.glob(f"{'[0-9a-f]' * 32}/.tmp-*.pt"):
        with suppress(FileNotFoundError):  # renamed or removed by another process
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                path.unlink()


def _paths(value: Any) -> list[Path]:
    """List the files that a value of a datalist names, including those in a DICOM folder."""
    if isinstance(value, list | tuple):
        return [path for item in value for path in _paths(item)]
    if not isinstance(value, str | Path) or not value or not os.path.exists(value):  # noqa: PTH110 (also takes prose)
        return []
    path = Path(value)
    return sorted(path.rglob("*")) if path.is_dir() else [path]
