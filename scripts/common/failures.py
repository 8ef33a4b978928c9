"""The failed cases of a run: table and exit code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scripts.common.case_table import read_rows, write_rows

_COLUMNS = ("reason",)


def read_failures(folder: Path) -> dict[str, str]:
    """Read `failed.csv` of earlier runs.

    Args:
        folder: folder of the results.

    Returns:
        Case name to reason.

    Raises:
        InputError: it is damaged or another table.
    """
    return {case: reason for case, [reason] in read_rows(folder / "failed.csv", _COLUMNS).items()}


def write_failures(folder: Path, failures: Mapping[str, str]) -> None:
    """Write `failed.csv`, or remove the file of an earlier run if no case failed.

    Args:
        folder: folder of the results.
        failures: case name to reason.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    path = folder / "failed.csv"
    if failures:
        write_rows(path, _COLUMNS, {case: [reason] for case, reason in failures.items()})
    else:
        path.unlink(missing_ok=True)


def exit_if_failed(failures: Mapping[str, str], total: int) -> None:
    """End the program with exit code 1 and one line per failed case, if there is one.

    Args:
        failures: case name to reason.
        total: number of all cases.

    Raises:
        SystemExit: at least one case failed.
    """
    if failures:
        lines = [f"  {case}: {reason}" for case, reason in failures.items()]
        raise SystemExit("\n".join([f"{len(lines)} of {total} cases failed:", *lines]))
