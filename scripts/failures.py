"""What a run over many cases leaves of those that failed: a table, and the message it ends with."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from scripts.files import atomic_path


def write_failures(folder: Path, failures: Mapping[str, str]) -> None:
    """Write `failed.csv`, or remove that of an earlier run when no case failed.

    Args:
        folder: of the results.
        failures: case name to reason.
    """
    path = folder / "failed.csv"
    path.unlink(missing_ok=True)
    if failures:
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([("case", "reason"), *failures.items()])


def failure_message(failures: Mapping[str, str], total: int) -> str:
    """Name the failed cases of `total` and their reasons, a line each."""
    lines = [f"  {case}: {why}" for case, why in failures.items()]
    return "\n".join([f"{len(lines)} of {total} cases failed:", *lines])
