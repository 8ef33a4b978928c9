"""Counts of people that may leave a secure environment."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from scripts.common.errors import InputError

LEAST = 5
"""Smaller counts of cases are not shown, and no number rests on the values of fewer."""


def shown(count: int, whole: int | None = None, *, whole_shown: bool = True) -> str:
    """Return a count as text, or what may be said of it.

    Args:
        count: of cases.
        whole: what the count is a part of; None for a count that is no part.
        whole_shown: whether the reader knows `whole`.

    >>> [shown(count, 300) for count in (0, 4, 5, 295, 296, 300)]
    ['<5', '<5', '5', '295', '>295', '>295']
    >>> shown(296, 300, whole_shown=False)
    'withheld'
    """
    if count < LEAST:
        return f"<{LEAST}"
    if whole is not None and whole - count < LEAST:
        return f">{whole - LEAST}" if whole_shown else "withheld"
    return str(count)


def check_folder(folder: Path, files: Collection[str]) -> None:
    """Refuse to add to a folder that holds other files: it is made to be copied as a whole.

    Args:
        folder: it need not exist.
        files: names of the results.

    Raises:
        InputError: it does, or is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, where a folder will be written; move it away.")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if others := sorted(name for name in names - {*files} if not name.startswith(".tmp-")):
        raise InputError(f"{folder}: holds {others[0]!r}, which is no aggregated result; move it away.")
