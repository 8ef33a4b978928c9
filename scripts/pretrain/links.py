"""Links into a data set to files and folders that are too large to copy."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.names import printable


def link(target: Path, path: Path) -> None:
    """Make `path` a symbolic link to a file or folder, in one step; an earlier link is replaced.

    Raises:
        InputError: it cannot be made, or something else is there.
    """
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}{''.join(path.suffixes[-2:])}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_symlink():
            raise InputError(f"{printable(path)}: is not a link; remove what is in the way, or choose another OUT.")
        temporary.symlink_to(os.path.realpath(target))
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"{printable(path)}: cannot be linked ({error.strerror}); choose another OUT.") from error
