"""Weights of a file that holds a whole pickled module, read without running any of its code."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from scripts.common.errors import InputError
from scripts.models.weight_files import DAMAGED, WRAPPERS, check_archive, load_state_dict_file

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_MAX_MODULES = 2000
_PREFIX = re.compile(r"^(?:model\.|module\.|_orig_mod\.)+")


class _Inert:
    """What any class or function of a pickle becomes: it keeps what it is given and does nothing.

    Attributes:
        origin: module and name in the pickle, of each subclass.
        args: of the call.
        state: of the instance.
        items: those set by key.
    """

    origin = ""

    def __new__(cls, *args: Any, **_: Any) -> _Inert:
        inert = super().__new__(cls)
        inert.args, inert.state, inert.items = args, None, {}
        return inert

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


class _InertUnpickler(pickle.Unpickler):
    """Read a pickle in which each class and function becomes a subclass of `_Inert`: none is imported or called."""

    def find_class(self, module: str, name: str) -> type[_Inert]:
        return type("Inert", (_Inert,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        return _Storage(pid)


class _Storage:
    """The name under which the archive holds the values of a tensor, and their type."""

    def __init__(self, pid: Any) -> None:
        kind, storage, self.key, _, _ = pid
        self.kind = getattr(storage, "origin", "").rpartition(".")[2]
        if kind != "storage" or not isinstance(self.key, str) or not self.key.isalnum():
            raise pickle.UnpicklingError("a storage without a name")


def load_published_file(path: str | Path) -> dict[str, torch.Tensor]:
    """Read weights of a file that may hold anything beside them: as `load_state_dict_file`, or else `load_module_file`.

    Raises:
        InputError: both refuse it; the reason is that of the former.
    """
    try:
        return load_state_dict_file(path)
    except InputError as refused:
        try:
            return load_module_file(path)
        except InputError:
            raise refused from None


def load_module_file(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a whole module that `torch.save` wrote, under the names of its state dict.

    Nothing of the pickle is imported or called: each class and function becomes an object that keeps its arguments.
    Tensors are then built from the values in the archive, along `_parameters`, `_buffers` and `_modules`. A state dict
    is read too, also under `state_dict` or `model`; prefixes such as `model.`, which Lightning gives, are left out.

    Args:
        path: file of `torch.save(module, path)` or of a state dict, written by PyTorch 1.6 or newer.

    Returns:
        Names to tensors on the CPU.

    Raises:
        InputError: there is no such file, it is none of these, or it is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise InputError(
                    f"{path}: not a file of torch.save by PyTorch 1.6 or newer: download or save it again."
                )
            check_archive(file)
            with zipfile.ZipFile(file) as archive:
                state = _read_archive(archive)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file: give the path of the weights.") from error
    except (*DAMAGED, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a PyTorch checkpoint, or corrupted ({reason}): download it again.") from error
    if not state:
        raise InputError(f"{path}: holds no weights: give a file of torch.save(network, path) or of its state dict.")
    return state


def _read_archive(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise zipfile.BadZipFile(f"{len(pickles)} files data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("values are not little-endian")
    if f"{root}constants.pkl" in archive.namelist():
        raise ValueError("a TorchScript archive, which is a program")
    content = _InertUnpickler(io.BytesIO(archive.read(pickles[0]))).load()
    values: dict[str, bytearray] = {}
    return {name: _rebuilt(inert, values, archive, root) for name, inert in _tensors_of(content)}


def _tensors_of(content: Any) -> Iterator[tuple[str, _Inert]]:
    """Walk what a file holds: a module, a state dict, or a dictionary with one under a name such as `state_dict`."""
    items = _as_dict(content)
    if items is None or "_modules" in items:
        yield from _module_tensors(content)
        return
    for name, value in next(filter(None, (_as_dict(items.get(name)) for name in WRAPPERS)), items).items():
        if isinstance(name, str) and (tensor := _as_tensor(value)) is not None:
            yield _PREFIX.sub("", name), tensor


def _module_tensors(module: Any) -> Iterator[tuple[str, _Inert]]:
    waiting, count = [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        attributes = _as_dict(getattr(module, "state", None)) or {}
        transient = attributes.get("_non_persistent_buffers_set") or ()
        transient = transient.args[0] if isinstance(transient, _Inert) and transient.args else transient
        for kind in ("_parameters", "_buffers"):
            for name, value in (_as_dict(attributes.get(kind)) or {}).items():
                if (tensor := _as_tensor(value)) is not None and name not in transient:
                    yield f"{prefix}{name}", tensor
        inner = _as_dict(attributes.get("_modules")) or {}
        waiting += [(f"{prefix}{name}.", value) for name, value in inner.items()]
        count += 1
        if count > _MAX_MODULES:  # also where a module contains itself
            raise ValueError(f"more than {_MAX_MODULES} modules")


def _as_dict(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, _Inert) and value.origin == "collections.OrderedDict":
        return value.items
    return value if isinstance(value, dict) else None


def _as_tensor(value: Any) -> _Inert | None:
    """Return what describes a tensor: of a parameter, its values."""
    while isinstance(value, _Inert) and value.origin.startswith("torch._utils._rebuild_parameter"):
        value = value.args[0]
    is_tensor = isinstance(value, _Inert) and value.origin == "torch._utils._rebuild_tensor_v2"
    return value if is_tensor else None


def _rebuilt(inert: _Inert, values: dict[str, bytearray], archive: zipfile.ZipFile, root: str) -> torch.Tensor:
    """Build a tensor from storage, offset, size and strides; torch refuses what reaches beyond the storage."""
    storage, offset, size, strides = inert.args[:4]
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without values")
    if storage.key not in values:
        values[storage.key] = bytearray(archive.read(f"{root}data/{storage.key}"))
    if not values[storage.key]:
        raise ValueError("a tensor without values")
    return torch.frombuffer(values[storage.key], dtype=_DTYPES[storage.kind]).as_strided(size, strides, offset)
