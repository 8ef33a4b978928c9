"""Datasets that keep the result of the deterministic transforms in memory, in a store, or not at all."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, RandomizableTrait, Transform, reset_ops_id

from scripts.common.errors import InputError
from scripts.common.files import require_writable
from scripts.common.fingerprint import file_state, fingerprint
from scripts.common.flags import parse_flag
from scripts.common.ranks import is_rank0
from scripts.data.crops import RandCropByPlacesd
from scripts.data.store import FORMAT, import_blosc2, read_case, read_volumes, write_case
from scripts.inference.evaluator import CaseDataset

logger = logging.getLogger(__name__)

KINDS = ("cache", "store", "plain")
LEFTOVER_AGE_S = 3600.0


def make_dataset(
    data: Sequence[Mapping[str, Any]],
    transform: Compose,
    *,
    kind: str = "cache",
    cache_dir: str | Path = "cache",
    cache_rate: float = 1.0,
    num_workers: int = 0,
    mmap: bool | str = False,
    report_failures: bool = False,
) -> Dataset:
    """Make a dataset that keeps the result of the transforms before the first random one.

    Args:
        data: cases of a datalist.
        transform: deterministic transforms, then random ones.
        kind: `cache` keeps prepared cases in the memory of each process, `store` in compressed files in `cache_dir`,
            `plain` prepares them every time.
        cache_dir: folder of the files of `store`; runs, processes and data sets may share it.
        cache_rate: fraction of the cases that `cache` keeps; the others are prepared every time.
        num_workers: threads that fill the memory of `cache`.
        mmap: whether `store` reads its files through memory maps, of which the system reads more ahead than a crop
            needs; also "true" or "false".
        report_failures: give the reason in place of a case that cannot be prepared, for
            `scripts.inference.evaluator.CaseEvaluator`. It takes each case once, so that `cache` then is `plain`.

    Raises:
        InputError: `kind` is unknown, `cache_rate` is outside 0..1, `num_workers` is negative, or see
            `StoredCaseDataset`.

    >>> from monai.transforms import Lambdad
    >>> double = Compose([Lambdad("image", lambda image: 2 * image)])
    >>> dataset = make_dataset([{"image": 1}, {"image": 2}], double, kind="plain")
    >>> [case["image"] for case in dataset]
    [2, 4]
    """
    if kind not in KINDS:
        renamed = "persistent is now called store; " if kind == "persistent" else ""
        raise InputError(f"dataset is {kind!r}: {renamed}give cache (memory), store (files in cache_dir) or plain.")
    if not isinstance(cache_rate, int | float) or not 0 <= cache_rate <= 1:
        raise InputError(f"cache_rate is {cache_rate!r}: give the fraction of cases to keep in memory, 0 to 1.")
    if not isinstance(num_workers, int) or num_workers < 0:
        raise InputError(f"num_workers is {num_workers!r}: give the number of workers, 0 or more.")
    mmap = parse_flag(mmap, "store_mmap")
    store = StoredCaseDataset(data, transform, cache_dir=cache_dir, mmap=mmap) if kind == "store" else None
    if report_failures:
        return CaseDataset(data, store.load if store else transform)
    if store:
        return store
    if kind == "plain":
        return Dataset(data, transform)
    return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=num_workers)


class StoredCaseDataset(Dataset):
    """Keep each prepared case in a store, and prepare it again if its images or the transforms have changed.

    Files are named `cache_dir/<transforms>/<case>.*`: `transforms` is the fingerprint of the deterministic transforms,
    `case` that of the datalist's item, with size and modification time of all files in it. Outdated files stay until
    they are deleted. Files are written atomically, so that processes may share the folder and may be killed; a damaged
    case is prepared again. Temporary files of killed runs are removed when they are an hour old: by then no process is
    writing them any more.

    If the first random transform is `RandCropByPlacesd`, it gets volumes that are not read yet, and reads its crops.

    Sizes of files are compared each time. Checksums are compared when a case is first taken, by this process or those
    of a `DataLoader` that it starts: later epochs read only the chunks of their crops.

    `monai.data.PersistentDataset` 1.6.1 reads whole cases; names files by the item alone, so that a changed image is
    not noticed; moves them from the system's temporary folder, which is not atomic between disks; deletes the folder in
    `set_data`; and cannot read back files with metadata.

    Args:
        data: cases of a datalist, with paths or lists of paths.
        transform: see `make_dataset`.
        cache_dir: folder of the files; created if it is missing.
        mmap: see `make_dataset`.

    Raises:
        InputError: the folder cannot be written, a transform has no fingerprint, or Blosc2 is not installed.

    >>> import tempfile
    >>> from monai.transforms import EnsureTyped
    >>> dataset = StoredCaseDataset([{"image": 1.0}], Compose([EnsureTyped("image")]), cache_dir=tempfile.mkdtemp())
    >>> float(dataset[0]["image"])
    1.0
    >>> dataset.file_of({"image": 1.0}).is_file()
    True
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Compose, *, cache_dir: str | Path, mmap: bool = False
    ) -> None:
        super().__init__(data, transform.flatten())
        import_blosc2()
        steps = deterministic(self.transform)
        self.first_random, self.mmap = len(steps), mmap
        self.reads_crops = any(
            isinstance(step, RandCropByPlacesd) for step in self.transform.transforms[len(steps) :][:1]
        )
        try:
            name = fingerprint(FORMAT, steps)
        except InputError as error:
            raise InputError(f"a transform cannot be checked for changes ({error}): set dataset to cache.") from error
        self.cache_dir = require_writable(Path(cache_dir) / name, setting="cache_dir")
        self.verified = torch.zeros(len(data), dtype=torch.bool).share_memory_()
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
        case = self.load(self.data[index], verify=not self.verified[index])
        self.verified[index] = True
        return case

    def load(self, item: Mapping[str, Any], *, verify: bool = True) -> Any:
        """Return a case after the random transforms."""
        case = self.prepared(item, verify=verify)
        return self.transform(case if self.reads_crops else read_volumes(case), start=self.first_random)

    def prepared(self, item: Mapping[str, Any], *, verify: bool = True) -> dict[str, Any]:
        """Open a prepared case, whose volumes are not read yet; prepare and write it if it is missing or damaged.

        Args:
            item: case of the datalist.
            verify: compare the checksums of the volumes.

        Raises:
            InputError: the case cannot be prepared or written.
        """
        path = self.file_of(item)
        case = read_case(path, list(item), mmap=self.mmap, verify=verify)
        if case is None:
            done = self.transform(deepcopy(item), end=self.first_random, threading=True)
            reset_ops_id(done)
            write_case(done, path)
            case = read_case(path, list(done), mmap=self.mmap, verify=False)
        if case is None:
            raise InputError(f"{path}: was written and cannot be read; check the disk of cache_dir, then run again.")
        return case


def deterministic(transform: Compose) -> list[Callable]:
    """List the transforms before the first random one."""
    steps = transform.transforms
    random = [isinstance(step, RandomizableTrait) or not isinstance(step, Transform) for step in steps]
    return list(steps[: [*random, True].index(True)])


def _remove_old_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed runs, whatever their transforms; recent ones may still be written."""
    for path in folder.glob(f"{'[0-9a-f]' * 32}/.tmp-*"):
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
