"""Fingerprints of values and code, which tell whether a stored result is out of date.

Equal values, unchanged code and unchanged files have equal fingerprints, in every process.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import cache, partial
from importlib import metadata
from io import IOBase
from pathlib import Path
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from scripts.common.errors import InputError

_BY_VERSION = ("monai", "torch", "numpy")
_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE.parent
_TORCH_PLAIN = {("torch", "dtype"), ("torch", "device")}
_PLAIN = (str, bytes, int, float, complex, type(None), EllipsisType, Enum, Path, slice, range, np.dtype, np.generic)


def fingerprint(*values: Any) -> str:
    """Return a digest that is equal for equal values and differs if one of them changes.

    Functions and objects count with the source files of the modules that define them, and of all modules of this
    package that those import. MONAI, torch and NumPy count with their versions.

    Args:
        values: plain values, arrays, tensors, containers, functions and objects, nested in any way.

    Returns:
        32 hexadecimal digits.

    Raises:
        InputError: a value is of a type whose state cannot be read, such as a generator or an open file, or nested too
            deeply.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    try:
        content = json.dumps([list(map(_version, _BY_VERSION)), [_described(value) for value in values]])
    except RecursionError as error:
        raise InputError("a value has no fingerprint: it is nested too deeply.") from error
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def file_state(path: str | Path) -> list[Any]:
    """Return size and modification time of a file, which change with its content.

    Args:
        path: file or folder; the state of a folder changes with its files, not with those of folders in it.

    Returns:
        `[path, size, time]`, of a folder the sum of the sizes and the latest time; `[path]` if there is no such file.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISDIR(status.st_mode):
            return [str(path), status.st_size, status.st_mtime_ns]
        states = [status, *(entry.stat() for entry in os.scandir(path))]
    except OSError:  # the reader of the file reports why it cannot be read
        return [str(path)]
    return [str(path), sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)]


def imported_modules(files: Iterable[Path], root: Path) -> set[Path]:
    """Return the files of a package that some of its files import, directly or not, and those files themselves.

    Imports inside functions and under `if TYPE_CHECKING` count too.

    Args:
        files: Python files of the package.
        root: the folder that holds the package's folder.

    Raises:
        InputError: a file is not Python.
    """
    todo, found = list(files), set()
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += _direct_imports(file, root)
    return found


def _direct_imports(file: Path, root: Path) -> list[Path]:
    """Return the files of its own package that a file imports, and the `__init__.py` of their packages."""
    parts = file.relative_to(root).with_suffix("").parts
    try:
        names = _imported_names(file.read_text(encoding="utf-8"), parts)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not Python ({error}); correct or restore it.") from error
    modules = [module_file(name, root) for name in names if name.split(".")[0] == parts[0]]
    found = [module for module in modules if module]
    inits = {root / parent / "__init__.py" for path in [file, *found] for parent in path.relative_to(root).parents}
    return found + sorted(init for init in inits if init.parent != root and init.is_file())


@cache
def _imported_names(source: str, module: tuple[str, ...]) -> list[str]:
    """Return the dotted names that the source of a module imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            package = module[: -node.level] if node.level else ()
            names += [".".join(filter(None, [*package, node.module, alias.name])) for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def module_file(dotted: str, root: Path) -> Path | None:
    """Return the file of a module, or of the module of a name in it such as `scripts.io.nifti.read_nifti`, or None."""
    parts = dotted.split(".")
    if not all(part.isidentifier() for part in parts):  # `scripts./etc/x` would be a file outside of the package
        return None
    for end in (len(parts), len(parts) - 1):
        base = root.joinpath(*parts[:end])
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _described(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Describe a value in nested lists of text that are equal for equal values, in every process.

    A pickle would not do: it depends on the order of sets, which differs between processes, and on shared objects.
    """
    if isinstance(value, _PLAIN) or (type(value).__module__, type(value).__name__) in _TORCH_PLAIN:
        return [type(value).__name__, repr(value)]
    if id(value) in above:
        return "itself"
    inner = partial(_described, above=(*above, id(value)))
    if isinstance(value, np.ndarray) or (hasattr(value, "detach") and hasattr(value, "numpy")):
        return _described_array(value, inner)
    if isinstance(value, Mapping):
        return ["mapping", *sorted(([inner(key), inner(item)] for key, item in value.items()), key=json.dumps)]
    if isinstance(value, set | frozenset):
        return ["set", *sorted((inner(item) for item in value), key=json.dumps)]
    if isinstance(value, list | tuple):
        return ["sequence", *(inner(item) for item in value)]
    if isinstance(value, type):
        return [f"{value.__module__}.{value.__qualname__}", _source(value)]
    return _described_code(value, inner)


def _described_array(value: Any, inner: Callable[[Any], Any]) -> Any:
    """Describe a NumPy array or a tensor on any device."""
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, RuntimeError) as error:  # sparse, quantized, without values, of a type that NumPy lacks
        raise InputError(f"a tensor of {value.dtype} has no fingerprint: {str(error).rstrip('.')}.") from error
    content = inner(array.tolist()) if array.dtype.hasobject else hashlib.sha256(array.tobytes()).hexdigest()
    return [str(array.dtype), array.shape, content]


def _described_code(value: Any, inner: Callable[[Any], Any]) -> Any:
    """Describe functions and objects by what they are made of."""
    if isinstance(value, partial):
        return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, MethodType):
        return ["method", value.__name__, inner(value.__self__)]
    if isinstance(value, FunctionType):
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, closure]
        return [f"{value.__module__}.{value.__qualname__}", inner(parts), _source(value)]
    if isinstance(value, CodeType):
        return ["code", inner([value.co_code, value.co_names, value.co_consts])]
    if isinstance(value, BuiltinFunctionType | np.ufunc):
        owner = getattr(value, "__self__", None)
        return ["builtin", value.__name__, owner.__name__ if isinstance(owner, ModuleType) else inner(owner)]
    if not hasattr(value, "__dict__") or isinstance(value, ModuleType | IOBase):
        raise InputError(f"a {type(value).__qualname__} has no fingerprint: its state cannot be read.")
    state = {key: item for key, item in vars(value).items() if not isinstance(item, threading.local)}
    return [inner(type(value)), inner(state)]


def _source(value: type | FunctionType) -> list[str]:
    """Return the hashes of the source files that define a function, or a class and its bases."""
    parts = value.__mro__ if isinstance(value, type) else (value,)
    files = set()
    for name in {part.__module__ for part in parts}:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and name.split(".")[0] not in (*_BY_VERSION, *sys.stdlib_module_names):
            path = Path(file).resolve()
            files |= imported_modules([path], _ROOT) if path.is_relative_to(_PACKAGE) else {path}
    return sorted(map(_file_hash, files))


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _version(package: str) -> str:
    """Return the installed version, whether or not the package is imported in this process."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
