"""CSV files with a row per case, which one run after the other adds to."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError
from scripts.common.files import atomic_path

Rows = dict[str, list[str]]
"""Case to the text of its cells, without the column `case`."""

_TEXT = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # file names may be any bytes


def read_rows(path: Path, columns: Sequence[str]) -> Rows:
    """Read the rows of an earlier run.

    Args:
        path: need not exist.
        columns: those that the file must have after `case`.

    Raises:
        InputError: the file is damaged, not such a table, or has other columns, as that of another network.
    """
    lines = read_lines(path, columns)
    rows = {case: cells for case, *cells in lines}
    if len(rows) < len(lines):
        raise _refusal(path, "holds two rows of one case")
    return rows


def read_lines(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Read the lines of a table that may have several of one case, without the head; see `read_rows`."""
    try:
        with path.open(**_TEXT) as file:
            head, *lines = list(csv.reader(file, strict=True)) or [[]]
    except FileNotFoundError:
        return []
    except (OSError, csv.Error) as error:
        raise _refusal(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    expected = ["case", *columns]
    if head != expected:
        differing = [name for name in [*head, *expected] if (name in head) != (name in expected)][:5]
        raise _refusal(path, f"its columns are not those of this run ({', '.join(differing) or 'their order'})")
    for number, line in enumerate(lines, start=2):
        if len(line) != len(head):
            raise _refusal(path, f"row {number} has {len(line)} cells, the head has {len(head)}")
    return lines


def write_rows(path: Path, columns: Sequence[str], rows: Mapping[str, Iterable[str]]) -> None:
    """Write a table, sorted by case, whole or not at all; see `scripts.common.files.atomic_path`."""
    write_lines(path, columns, [[case, *cells] for case, cells in sorted(rows.items())])


def write_lines(path: Path, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Write a table that may have several lines of one case; see `write_rows`."""
    with atomic_path(path) as temporary, temporary.open("w", **_TEXT) as file:
        csv.writer(file, lineterminator="\n").writerows([["case", *columns], *lines])


def cell(value: Any, *, decimals: int) -> str:
    """Format a value; one that is not a number is an empty cell.

    >>> [cell(value, decimals=2) for value in (1 / 3, 4, True, "why", float("nan"))]
    ['0.33', '4', 'True', 'why', '']
    """
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.{decimals}f}"
    return str(value)


def _refusal(path: Path, problem: str) -> InputError:
    return InputError(f"{path}: {problem}; move the file away, or set another output_dir.")
