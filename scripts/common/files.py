"""Atomic writing: a file is complete or it is not there."""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.common.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_TEMPORARY_NAME = re.compile(r"\.tmp-[0-9a-f]{16}(\..*)?")


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
        OSError: the block wrote no file, the disk is full, or `path` is a folder.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".tmp-{secrets.token_hex(8)}{''.join(final.suffixes[-2:])}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(final)
    except BaseException:  # also after Ctrl-C and SystemExit
        temporary.unlink(missing_ok=True)
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


def require_writable(folder: str | os.PathLike[str]) -> Path:
    """Create a folder and check that files can be written to it, before the computation starts.

    Args:
        folder: folder of the results; missing parents are created.

    Returns:
        The folder.

    Raises:
        InputError: it cannot be created or written to.
    """
    here = Path(folder)
    try:
        here.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        raise InputError(f"{here}: cannot be written ({error.strerror}); set another output folder") from error
    return here


def _flush_to_disk(path: Path) -> None:
    """Wait until the data is on disk: after a power cut the file could otherwise be renamed but empty."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
