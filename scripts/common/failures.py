"""The failed cases of a run: table and exit code."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from scripts.common.files import atomic_path


def write_failures(folder: Path, failures: Mapping[str, str]) -> None:
    """Write `failed.csv`, or remove the file of an earlier run if no case failed.

    Args:
        folder: folder of the results.
        failures: case name to reason.
    """
    path = folder / "failed.csv"
    path.unlink(missing_ok=True)
    if failures:
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([("case", "reason"), *failures.items()])


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
