"""Where prepared cases wait for the next epoch: in memory, on disk, or nowhere."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import monai
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.transforms import Compose, RandomizableTrait, Transform
from monai.utils import LazyAttr, MetaKeys, SpaceKeys, TraceKeys

from scripts.cases import is_rank0
from scripts.files import atomic_path, require_writable

logger = logging.getLogger(__name__)

KINDS = ("cache", "persistent", "plain")
LEFTOVER_AGE_S = 3600.0
_VERSIONED = {"monai", "torch", "numpy", *sys.stdlib_module_names}
_PLAIN = (str, bytes, int, float, complex, type(None), Enum, Path, slice, range, np.dtype, np.generic)
_PLAIN += (torch.dtype, torch.device)
# What metadata is made of besides tensors: arrays of numbers and text, and MONAI's names. No code runs for them.
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
) -> Dataset:
    """Make a dataset whose deterministic transforms run once, once per change, or every time.

    Args:
        data: cases of a datalist.
        transform: deterministic transforms, then random ones; what comes before the first random one is kept.
        kind: `cache` keeps prepared cases in the memory of each process, `persistent` in files of `cache_dir`,
            `plain` nowhere.
        cache_dir: folder of the files of `persistent`; may be shared by runs, processes and data sets.
        cache_rate: share of the cases that `cache` keeps; the others are prepared each time.
        num_workers: threads that fill the memory of `cache`.

    Raises:
        ValueError: `kind` is none of these, `cache_rate` is outside 0..1, or `cache_dir` cannot be written.
    """
    if kind not in KINDS:
        raise ValueError(f"dataset is {kind!r}: give cache (memory), persistent (files in cache_dir) or plain.")
    if kind == "plain":
        return Dataset(data, transform)
    if kind == "persistent":
        return CaseFiles(data, transform, cache_dir=cache_dir)
    if not 0 <= cache_rate <= 1:
        raise ValueError(f"cache_rate is {cache_rate}: give the share of cases to keep in memory, 0 to 1.")
    return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=num_workers)


class CaseFiles(PersistentDataset):
    """Keep each prepared case in a file, which is used again only where it would come out the same.

    Files lie in `cache_dir/<preparation>/<case>.pt`. The first name changes with the deterministic transforms,
    their parameters, the source of those that are not MONAI's, and the versions of MONAI, torch and NumPy; the
    second with the item of the datalist and with size and time of change of every file that it names. Files that
    no longer fit stay until they are deleted. They are renamed into place when they are whole, so that a killed
    run leaves nothing that would be read, and any number of processes may share the folder. One that cannot be
    read is made again. They are read without running what is pickled in them.

    Departures from `monai.data.PersistentDataset` 1.6.1: there the names of the files do not depend on the files
    of the case, a file is moved in from the folder for temporary files, which is a copy where that is another
    disk, `set_data` deletes the folder, and with metadata a file is never accepted when it is read again.

    Args:
        data: cases of a datalist, with paths or lists of paths.
        transform: see `make_dataset`.
        cache_dir: made if it is missing.

    Raises:
        ValueError: the folder cannot be written, or a transform holds what cannot be told apart from another.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Compose, *, cache_dir: str | Path) -> None:
        super().__init__(data, transform, cache_dir=None)
        versions = [module.__version__ for module in (monai, torch, np)]
        preparation = _digest([*versions, [_described(step) for step in deterministic(self.transform)]])
        self.cache_dir = require_writable(Path(cache_dir) / preparation)
        _remove_old_leftovers(self.cache_dir)
        if is_rank0():
            ready = sum(self.file_of(item).is_file() for item in data)
            logger.info("%s: %d of %d cases are prepared already", self.cache_dir, ready, len(data))

    def file_of(self, item: Mapping[str, Any]) -> Path:
        """Return the file of a case, whether or not it is there yet."""
        stamps = [_stamp(path) for value in item.values() for path in _paths(value)]
        return self.cache_dir / f"{_digest([_described(item), stamps])}.pt"

    def set_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Take other cases; nothing is deleted, because a file belongs to its case alone."""
        self.data = data

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> dict[str, Any]:
        """Read a prepared case, or prepare it and write it; MONAI calls this for each case."""
        path = self.file_of(item_transformed)
        content = _read(path)
        if content is None:
            content = {key: _own(value) for key, value in self._pre_transform(deepcopy(item_transformed)).items()}
            _write(content, path)
        return content


def deterministic(transform: Compose) -> list[Callable]:
    """List the transforms before the first random one, which MONAI's datasets run once."""
    steps = transform.flatten().transforms
    random = [isinstance(step, RandomizableTrait) or not isinstance(step, Transform) for step in steps]
    return list(steps[: [*random, True].index(True)])


def _read(path: Path) -> dict[str, Any] | None:
    """Read a prepared case; None if it is not there or damaged."""
    if not path.is_file():
        return None
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(path, weights_only=True)
    except Exception as error:  # a damaged file can raise anything; preparing the case again is always right
        why = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("%s: cannot be read (%s); the case is prepared again", path, why)
        return None


def _write(content: Mapping[str, Any], path: Path) -> None:
    """Write a prepared case, whole or not at all.

    Raises:
        ValueError: the disk is full, or the case holds what cannot be read back safely.
    """
    try:
        with atomic_path(path) as temporary, torch.serialization.safe_globals(_SAFE_GLOBALS):
            torch.save(dict(content), temporary)
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
            if unsafe:
                raise ValueError(f"prepared cases hold {', '.join(unsafe)}, not data alone: set --dataset cache.")
    except (OSError, RuntimeError) as error:  # the latter where torch cannot write
        raise ValueError(f"{path}: cannot be written ({error}): free space or set another cache_dir.") from error


def _own(value: Any) -> Any:
    """Copy a tensor that is a part of a larger one, which would be written whole."""
    is_part = isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes
    return value.clone() if is_part else value


def _remove_old_leftovers(folder: Path) -> None:
    """Remove what killed runs left; what is young may be a file that another process is writing."""
    for path in folder.glob(".tmp-*"):
        if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
            path.unlink(missing_ok=True)


def _paths(value: Any) -> list[Path]:
    """List the existing files among a value of a datalist, those of a DICOM folder included."""
    if isinstance(value, list | tuple):
        return [path for item in value for path in _paths(item)]
    path = Path(value) if isinstance(value, str | Path) and value else None
    if path is None or not path.exists():
        return []
    return sorted(path.rglob("*")) if path.is_dir() else [path]


def _stamp(path: Path) -> list[Any]:
    """Tell one state of a file from another without reading it."""
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]


def _digest(description: Any) -> str:
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()[:32]


def _described(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Describe a value in lists of text that are equal where the values are, in every process.

    A pickle would not do: it follows the order of sets, which differs between processes, and sharing in memory.

    Raises:
        ValueError: the value is of a kind that this cannot see into.
    """
    if isinstance(value, _PLAIN):
        return [type(value).__name__, repr(value)]
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.ascontiguousarray(value)
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if id(value) in above:
        return "itself"
    inner = partial(_described, above=(*above, id(value)))
    if isinstance(value, Mapping):
        return ["mapping", *sorted(([inner(key), inner(item)] for key, item in value.items()), key=json.dumps)]
    if isinstance(value, set | frozenset):
        return ["set", *sorted((inner(item) for item in value), key=json.dumps)]
    if isinstance(value, list | tuple):
        return ["sequence", *(inner(item) for item in value)]
    if isinstance(value, type):
        return [f"{value.__module__}.{value.__qualname__}", _source(value)]
    return _described_code(value, inner)


def _described_code(value: Any, inner: Callable[[Any], Any]) -> Any:
    """Describe functions and objects by what they are made of."""
    if isinstance(value, partial):
        return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, MethodType):
        return ["method", value.__name__, inner(value.__self__)]
    if isinstance(value, FunctionType):
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        made_of = [value.__code__, value.__defaults__, value.__kwdefaults__, closure]
        return [f"{value.__module__}.{value.__qualname__}", inner(made_of), _source(value)]
    if isinstance(value, CodeType):
        return ["code", inner([value.co_code, value.co_names, value.co_consts])]
    if isinstance(value, BuiltinFunctionType | np.ufunc):
        return ["builtin", repr(value.__name__)]
    if not hasattr(value, "__dict__"):
        kind = type(value).__qualname__
        raise ValueError(f"a transform holds a {kind}, whose changes cannot be seen: set --dataset cache or plain.")
    state = {key: item for key, item in vars(value).items() if not isinstance(item, threading.local)}
    return [inner(type(value)), inner(state)]


def _source(value: type | FunctionType) -> list[str]:
    """Return digests of the modules that define a function or class and its bases, bar what versions cover."""
    parts = value.__mro__ if isinstance(value, type) else (value,)
    own = {part.__module__ for part in parts if part.__module__.split(".")[0] not in _VERSIONED}
    files = {getattr(sys.modules.get(name), "__file__", None) for name in own}
    return sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file)
