"""The store of prepared cases: volumes in compressed chunks, of which a crop reads only those that it touches."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import LazyAttr, MetaKeys, SpaceKeys, TraceKeys, convert_to_tensor

from scripts.common.errors import InputError
from scripts.common.files import atomic_path

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files; part of the name of their folder."""
MAX_BLOCK_BYTES, MAX_CHUNK_BYTES = 128 * 2**10, 6 * 2**20
_BLOCK_STEP = 4
_INTEGERS = (np.uint8, np.int16, np.int32)
_PIECE_BYTES = 2**20
# What metadata holds besides tensors: arrays of numbers and text, and MONAI's enums. Loading them runs no code.
_NUMPY_DTYPES = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDSU"]
_SAFE_GLOBALS = [np.ndarray, np.dtype, *_NUMPY_DTYPES, np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
_SAFE_GLOBALS += [TraceKeys, MetaKeys, SpaceKeys, LazyAttr]


def import_blosc2() -> ModuleType:
    """Import Blosc2, which only the store needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        import blosc2
    except ImportError as error:
        raise InputError("dataset store needs Blosc2: pip install blosc2, or set dataset to cache or plain.") from error
    return blosc2


@dataclass(frozen=True)
class ChunkedVolume:
    """A volume in a file, of which parts can be read.

    Attributes:
        path: file of a Blosc2 array.
        shape: (C, X, Y, Z).
        like: an empty tensor of the type, the dtype and the metadata of the volume.
        mmap: whether to read through a memory map.
    """

    path: Path
    shape: tuple[int, ...]
    like: torch.Tensor
    mmap: bool

    def read(self) -> torch.Tensor:
        """Read the whole volume, with its metadata."""
        values = self.part([slice(0, size) for size in self.shape[1:]])
        if isinstance(self.like, MetaTensor):
            return MetaTensor(values, meta=self.like.meta, applied_operations=self.like.applied_operations)
        return values

    def part(self, box: Sequence[slice]) -> torch.Tensor:
        """Read all channels of a box, without metadata.

        Args:
            box: range along each spatial axis, inside of the volume.

        Raises:
            InputError: the file was damaged or removed after it had been checked.
        """
        blosc2 = import_blosc2()
        options = {"mmap_mode": "r"} if self.mmap else {}
        try:
            array = blosc2.open(str(self.path), mode="r", dparams=blosc2.DParams(nthreads=1), **options)
            values = array[(slice(None), *box)]
        except Exception as error:  # Blosc2 raises various ones
            raise InputError(f"{self.path}: cannot be read ({_line(error)}); run again to prepare the case.") from error
        return torch.from_numpy(values).to(self.like.dtype)


def write_case(content: Mapping[str, Any], path: Path) -> None:
    """Write a prepared case: each volume to `<path's stem>.<key>.b2nd`, then the rest to `path`.

    `path` is written last, with size and CRC-32 of the other files, so that a case is complete or not there. Values are
    stored without loss: floats that are all whole numbers, such as labels and CT in HU, as the smallest integers that
    hold them, other floats as they are, because float16 would change them, so that a run would depend on `dataset`.

    Args:
        content: a case after the deterministic transforms.
        path: file to write, `*.pt`.

    Raises:
        InputError: see `atomic_path`; or the case holds objects that `weights_only=True` refuses.
    """
    rest, volumes = {}, {}
    for key, value in content.items():
        rest[key] = _empty_like(value) if _is_volume(value) else _without_base(value)
        if _is_volume(value):
            volumes[key] = {"shape": list(value.shape), **_write_volume(value, _volume_path(path, key))}
    with atomic_path(path) as temporary, torch.serialization.safe_globals(_SAFE_GLOBALS):
        with temporary.open("wb") as file:  # torch writes a path into the file, so that those of equal cases differ
            torch.save({"item": rest, "volumes": volumes}, file)
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
        if unsafe:
            raise InputError(f"prepared cases hold {', '.join(unsafe)}, not only data: set dataset to cache.")


def read_case(path: Path, keys: Sequence[str], *, mmap: bool, verify: bool) -> dict[str, Any] | None:
    """Read a prepared case, its volumes as `ChunkedVolume`; None if it is missing, and, with a warning, if damaged.

    Args:
        path: file of `write_case`.
        keys: of the datalist's item, of which the case has at least one.
        mmap: see `ChunkedVolume`.
        verify: compare the checksums of the volumes; otherwise only their sizes.
    """
    if not path.is_file():
        return None
    try:
        stored = _read_rest(path)
        case = stored["item"]
        if not case.keys() & set(keys):
            raise ValueError("not a prepared case")
        for key, volume in stored["volumes"].items():
            file = _volume_path(path, key)
            _check_volume(file, volume, verify=verify)
            case[key] = ChunkedVolume(file, tuple(volume["shape"]), case[key], mmap)
    except Exception as error:  # a damaged file can raise anything, and preparing the case again is always right
        logger.warning("%s: cannot be read (%s); the case is prepared again", path, _line(error))
        return None
    return case


def read_volumes(case: Mapping[str, Any]) -> dict[str, Any]:
    """Read the whole volumes of a case."""
    return {key: value.read() if isinstance(value, ChunkedVolume) else value for key, value in case.items()}


def case_bytes(path: Path) -> int:
    """Return the size of the files of a case."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))


def block_and_chunk(shape: Sequence[int], item_bytes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose the shapes of a volume's blocks and chunks, cubes of one channel as far as the volume allows.

    A crop decompresses whole blocks, and opens whole chunks, of which it reads the blocks that it touches. A block of
    128 KiB fits into the cache of a core. Channels are compressed apart, as each has a scale of its own.

    Args:
        shape: (C, X, Y, Z).
        item_bytes: of a voxel.

    Source:
        nnU-Net v2 chooses the same limits for its stored arrays; here shapes do not depend on the patch, so that runs
        with other patches share the files.

    >>> block_and_chunk((4, 224, 174, 370), 4)
    ((1, 32, 32, 32), (1, 96, 128, 128))
    """
    block = _grow([min(_BLOCK_STEP, size) for size in shape[1:]], shape[1:], MAX_BLOCK_BYTES // item_bytes)
    return (1, *block), (1, *_grow(block, shape[1:], MAX_CHUNK_BYTES // item_bytes))


def _grow(steps: Sequence[int], shape: Sequence[int], limit: int) -> tuple[int, ...]:
    """Lengthen a box by steps along its shortest axis, as long as it holds no more voxels than the limit."""
    box, axes = list(steps), set(range(len(steps)))
    while axes:
        axis = min(sorted(axes, reverse=True), key=lambda axis: box[axis])
        longer = [min(size + steps[n] * (n == axis), shape[n]) for n, size in enumerate(box)]
        if longer == box or np.prod(longer) > limit:
            axes.remove(axis)
        else:
            box = longer
    return tuple(box)


def _is_volume(value: Any) -> bool:
    """Return whether a value is a tensor (C, X, Y, Z) of a type that NumPy has."""
    is_plain = isinstance(value, torch.Tensor) and not value.is_complex() and value.dtype != torch.bfloat16
    return is_plain and value.ndim == 4 and value.numel() > 0


def _empty_like(volume: torch.Tensor) -> torch.Tensor:
    empty = torch.empty((0, 0, 0, 0), dtype=volume.dtype)
    if isinstance(volume, MetaTensor):
        return MetaTensor(empty, meta=volume.meta, applied_operations=volume.applied_operations)
    return empty


def _volume_path(path: Path, key: str) -> Path:
    return path.with_suffix(f".{key}.b2nd")


def _write_volume(volume: torch.Tensor, path: Path) -> dict[str, int]:
    """Write a volume atomically, and return size and checksum of its file."""
    blosc2 = import_blosc2()
    array = _compact(np.ascontiguousarray(convert_to_tensor(volume).cpu().numpy()))
    block, chunk = block_and_chunk(array.shape, array.itemsize)
    options = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE]}
    parameters = blosc2.CParams(nthreads=1, **options)  # one thread, so that equal volumes give equal files
    frame = blosc2.asarray(array, blocks=block, chunks=chunk, cparams=parameters).to_cframe()
    with atomic_path(path) as temporary:
        temporary.write_bytes(frame)
    return {"bytes": len(frame), "crc32": zlib.crc32(frame)}


def _compact(array: np.ndarray) -> np.ndarray:
    """Return whole numbers as the smallest integers that hold exactly the same values, other arrays as they are."""
    low, high = array.min().item(), array.max().item()
    if array.dtype == bool or not np.isfinite([low, high]).all():
        return array
    for dtype in _INTEGERS:
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max and np.dtype(dtype).itemsize < array.itemsize:
            integers = array.astype(dtype)
            bits = f"u{array.itemsize}"  # -0.0 equals 0.0, but for its bits
            return integers if np.array_equal(integers.astype(array.dtype).view(bits), array.view(bits)) else array
    return array


def _read_rest(path: Path) -> dict[str, Any]:
    """Read the file beside the volumes.

    Raises:
        Exception: of any type, if it is damaged or another file.
    """
    with zipfile.ZipFile(path) as archive:
        if part := archive.testzip():  # torch does not compare the checksums that it writes
            raise ValueError(f"{part} has another checksum")
    with torch.serialization.safe_globals(_SAFE_GLOBALS):
        stored = torch.load(path, weights_only=True)
    if not isinstance(stored, dict) or stored.keys() != {"item", "volumes"}:
        raise ValueError("not a prepared case")
    return stored


def _check_volume(path: Path, volume: Mapping[str, int], *, verify: bool) -> None:
    """Compare the file of a volume with what was written.

    Raises:
        OSError: there is no such file.
        ValueError: its size or checksum is another one.
    """
    if path.stat().st_size != volume["bytes"]:
        raise ValueError(f"{path.name} has another size")
    if not verify:
        return
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            checksum = zlib.crc32(piece, checksum)
    if checksum != volume["crc32"]:
        raise ValueError(f"{path.name} has another checksum")


def _without_base(value: Any) -> Any:
    """Copy a tensor that is a view of a larger one: `torch.save` writes the whole storage."""
    is_part = isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes
    return value.clone() if is_part else value


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
