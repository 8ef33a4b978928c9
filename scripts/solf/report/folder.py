"""The report's folder: replaced as a whole; data are scripts, because pages opened from disk may not fetch files."""

from __future__ import annotations

import base64
import json
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np

from scripts.common.errors import InputError

ASSETS = Path(__file__).with_name("assets")
DIGITS, MIN_MAGNITUDE = 4, 1e-99
_TEMPORARY = ".tmp-qc-"
_FOLDERS = ("data", "lib", "pictures")
_LIBRARIES = {
    "bokeh.min.js": ("bokeh", "bokeh/server/static/js/bokeh.min.js"),
    "bokeh-api.min.js": ("bokeh", "bokeh/server/static/js/bokeh-api.min.js"),
    "datatables.js": ("itables", "itables/html/dt_bundle.js"),
    "datatables.css": ("itables", "itables/html/dt_bundle.css"),
}
_EXPORTS = re.compile(r"\bexport\{([\w$, ]*)\};?$", re.MULTILINE)


def check_report(final: Path) -> None:
    """Check what a report needs, before anything is computed.

    Args:
        final: the folder of the report; it need not exist.

    Raises:
        InputError: `final` exists and is not a report, or a library is not installed or not in the expected form.
    """
    _check_replaceable(final)
    _library_files()


def _check_replaceable(final: Path) -> None:
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        raise InputError(f"{final}: is not a folder, so it is not a report; move it away.")
    own = {*_FOLDERS, *(asset.name for asset in ASSETS.iterdir())}
    foreign = {path.name for path in final.glob("[!.]*")} - own
    if foreign:
        raise InputError(f"{final}: holds {min(foreign)}, so it is not a report; move it away.")


def remove_unfinished(folder: Path) -> None:
    """Remove the reports that killed runs left in a folder; call this only if no other run writes there."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `final` when the block ends well.

    Folders cannot be exchanged in one step: a process that is killed between the two renames leaves the old report
    under a temporary name, which the next run removes.

    Args:
        final: the folder to write; an older report stays there until the new one is complete.

    Raises:
        InputError: `final` exists and is not a report, or cannot be written.
    """
    _check_replaceable(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(final.parent)
    temporary = final.with_name(_TEMPORARY + secrets.token_hex(8))
    for name in _FOLDERS:
        (temporary / name).mkdir(parents=True)
    try:
        yield temporary
        if final.exists():
            old = final.rename(final.with_name(_TEMPORARY + secrets.token_hex(8)))
            temporary.rename(final)
            shutil.rmtree(old)
        else:
            temporary.rename(final)
    except BaseException as error:  # Ctrl-C too must leave nothing behind
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            why = error.strerror or error
            raise InputError(f"{final}: cannot be written ({why}); free space or correct the folder.") from error
        raise


def write_data(folder: Path, name: str, data: Any) -> None:
    """Write `data/<name>.js`, which passes its data to the page that loads it.

    Args:
        folder: the report's folder.
        name: name under which the page loads it.
        data: plain values.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    (folder / "data" / f"{name}.js").write_text(f"qc.receive({json.dumps(name)},{text});\n", encoding="ascii")


def packed(column: np.ndarray) -> dict[str, Any]:
    """Return numbers compressed, for `qc.unpack` in the page.

    Args:
        column: (N,) of a type with a JavaScript array.

    Returns:
        `type`, `size`, and `data`: the lowest bytes of all numbers, then the next (equal bytes in a row compress
        well), by zlib, in base64.
    """
    little = np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<"))
    planes = little.view(np.uint8).reshape(len(column), column.dtype.itemsize).T
    return {"type": column.dtype.name, "size": len(column), "data": _compressed(planes.tobytes())}


def packed_decimals(column: np.ndarray) -> dict[str, Any]:
    """Return floats rounded to DIGITS digits, as the page shows them, compressed; half the size of float32.

    Args:
        column: (N,); values that are not finite become NaN, magnitudes below MIN_MAGNITUDE 0.

    Returns:
        `mantissa` and `exponent`; a value is mantissa x 10^exponent, and NaN where the exponent is -128.
    """
    known = np.isfinite(column)
    sizes = np.where(known & (np.abs(column) > MIN_MAGNITUDE), np.abs(column), 1.0)
    exponents = np.floor(np.log10(sizes)) - (DIGITS - 1)
    mantissas = np.round(np.where(known, column, 0.0) * 10.0**-exponents)
    longer = np.abs(mantissas) >= 10**DIGITS  # 9999.6 became 10000
    mantissas, exponents = np.where(longer, mantissas / 10, mantissas), exponents + longer
    exponents = np.where(known, exponents.clip(-127, 127), -128)
    return {"mantissa": packed(mantissas.astype(np.int16)), "exponent": packed(exponents.astype(np.int8))}


def packed_json(data: Any) -> dict[str, Any]:
    """Return plain values compressed, for `qc.unpack` in the page."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return {"type": "json", "data": _compressed(text.encode("ascii"))}


def _compressed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, 6)).decode("ascii")


def copy_assets(folder: Path) -> None:
    """Copy the page, and the libraries that it needs with their licenses.

    Args:
        folder: the report's folder.

    Raises:
        InputError: a library is not installed, or not in the expected form.
    """
    for asset in sorted(ASSETS.iterdir()):
        shutil.copyfile(asset, folder / asset.name)
    for name, text in _library_files().items():
        (folder / "lib" / name).write_text(text, encoding="utf-8")


def _library_files() -> dict[str, str]:
    """Return name to text of the files of libraries, and of their licenses."""
    files = {name: _packaged(package, path) for name, (package, path) in _LIBRARIES.items()}
    files["datatables.js"] = _classic(files["datatables.js"])
    packages = sorted({package for package, _ in _LIBRARIES.values()})
    return files | {f"{package}.LICENSE.txt": _license(package) for package in packages}


def _packaged(package: str, path: str) -> str:
    """Read a file of an installed package, without importing the package."""
    try:
        return Path(str(distribution(package).locate_file(path))).read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError) as error:
        raise InputError(
            f"the report needs {path} of the package {package}; pip install -r requirements.txt"
        ) from error


def _license(package: str) -> str:
    names = [str(file) for file in distribution(package).files or () if file.name.startswith("LICENSE")]
    return "\n".join(_packaged(package, name) for name in sorted(names))


def _classic(module: str) -> str:
    """Turn a bundled module into a classic script that sets `DataTable`: browsers load no modules from disk."""
    exports = _EXPORTS.findall(module)
    default = re.search(r"([\w$]+) as default\b", exports[0]) if len(exports) == 1 else None
    if not default:
        raise InputError("DataTables of the package itables has no single list of exports; pip install itables==2.9.1")
    body = _EXPORTS.sub("", module)
    return f'(()=>{{"use strict";\n{body}\nwindow.DataTable={default[1]};\n}})();\n'
