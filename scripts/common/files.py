"""Atomic writing: a file is complete or it is not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.common.errors import InputError
from scripts.common.names import printable

if TYPE_CHECKING:
    import pandas as pd

_TEMPORARY_NAME = re.compile(r"\.tmp-[0-9a-f]{16}(\..*)?")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK_ERRORS = {*_FULL, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` when the block succeeds.

    The temporary name keeps the last two suffixes (`.tmp-0123456789abcdef.nii.gz`), because writers such as
    nibabel choose the format by them. Missing parent folders are created. If `path` is a symbolic link, the link is
    replaced, not the file that it points to.

    Args:
        path: the final path; an existing file is replaced in one step.

    Yields:
        The path to write to. It does not exist yet, so that the umask of the writer sets the file mode.

    Raises:
        InputError: the disk is full, over its quota, read-only or damaged, or the folder cannot be written.
        OSError: the block wrote no file, or `path` is a folder.
    """
    final = Path(path)
    temporary = final.with_name(f".tmp-{secrets.token_hex(8)}{''.join(final.suffixes[-2:])}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(final)
    except BaseException as error:  # also Ctrl-C and SystemExit
        with suppress(OSError):  # the disk may be gone or read-only
            temporary.unlink(missing_ok=True)
        if disk_error := _disk_error(error, temporary):
            raise InputError(f"{final}: cannot be written ({_explained(disk_error)}") from error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write indented JSON atomically; see `atomic_path`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_table(table: pd.DataFrame, path: str | os.PathLike[str], *, decimals: int = 6) -> None:
    """Write a table as CSV atomically; see `atomic_path`."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format=f"%.{decimals}f", lineterminator="\n")


def require_regular_file(path: Path, wanted: str) -> os.stat_result:
    """Return the status of a file; reading a pipe would wait for ever, and a device has no end.

    Args:
        path: of the file.
        wanted: what to give instead, for the message.

    Raises:
        InputError: it is a folder, a pipe or a device.
        OSError: there is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{printable(path)}: is a folder, a pipe or a device; give {wanted}.")
    return status


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_sha256(path: Path) -> str:
    """Return the SHA-256 of a file or, of a DICOM folder, of its files' names and digests as `sha256sum` lists them."""
    if not path.is_dir():
        return file_sha256(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files that a killed process left in a folder.

    Call this only if no other process is writing there: its temporary files would be removed too.

    Args:
        folder: searched without its subfolders; it need not exist.

    Returns:
        The removed files, sorted.
    """
    here = Path(folder)
    files = sorted(here.iterdir()) if here.is_dir() else []
    leftovers = [path for path in files if _TEMPORARY_NAME.fullmatch(path.name)]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers


def require_writable(folder: str | os.PathLike[str], *, setting: str = "output folder") -> Path:
    """Create a folder and check that files can be written to it, before the computation starts.

    Args:
        folder: folder of the results; missing parents are created.
        setting: the setting that names the folder, for the message.

    Returns:
        The folder.

    Raises:
        InputError: it cannot be created or written to.
    """
    here = Path(folder)
    try:
        here.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(bytes(4096))  # a full disk still takes empty files
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fix = "free space, or " if error.errno in _FULL else ""
        raise InputError(f"{here}: cannot be written ({error.strerror}); {fix}set another {setting}") from error
    return here


def _flush_to_disk(path: Path) -> None:
    """Wait until the data is on disk: after a power cut the file could otherwise be renamed but empty."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _disk_error(error: BaseException, temporary: Path) -> OSError | None:
    """Return the error of the disk or the folder behind an error of writing; None if it is of another kind."""
    while not isinstance(error, OSError):
        if not isinstance(error, Exception):
            return None
        error = error.__cause__ or error.__context__  # torch raises a RuntimeError while it handles that of the disk
    is_of_folder = error.filename is not None and Path(error.filename) in (temporary, *temporary.parents)
    is_of_disk = error.errno in _DISK_ERRORS or (is_of_folder and error.errno != errno.ENOENT)
    return error if is_of_disk else None


def _explained(error: OSError) -> str:
    fix = "free space" if error.errno in _FULL else "check the folder and its disk"
    return f"{os.strerror(error.errno)}); {fix}, then run again."
