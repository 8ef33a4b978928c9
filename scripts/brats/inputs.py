"""Functions that adapt shared code to BraTS: they find the cases of an input and check their sequences."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.brats.sequences import (
    REFERENCE,
    FoundCase,
    check_sequences,
    describe_grid_mismatch,
    describe_missing_overlap,
    find_cases,
    group_cases,
)
from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.common.grids import Grid

logger = logging.getLogger(__name__)


def find_sequences(path: Path) -> list[dict[str, Any]]:
    """Find cases of four sequences, for `scripts.data.inputs.list_cases`.

    Args:
        path: folder of a case, folder of such folders, or one sequence of a case, whose other files are found
            beside it.

    Returns:
        One `{"image": four paths, "case": path to name it after}` per case, with `"label"` if there is one.

    Raises:
        InputError: there is no case.
    """
    found = find_cases(path) if path.is_dir() else _case_of(path)
    if not found:
        names = "<case>-t1n.nii.gz, -t1c, -t2w, -t2f (or _t1, _t1ce, _t2, _flair)"
        raise InputError(f"{path}: no sequences found; give the folder of {names}, a folder of such, or a datalist.")
    return [_item(case) for case in found]


def _case_of(file: Path) -> list[FoundCase]:
    """Return the case that a sequence belongs to, in a list; an empty one for any other file."""
    return [case for case in group_cases(file.parent.iterdir()) if str(file) in case.images]


def _item(case: FoundCase) -> dict[str, Any]:
    if len(case.labels) > 1:
        listed = ", ".join(Path(label).name for label in case.labels)
        logger.warning("%s: %d files for seg (%s): none is used; keep one", case.name, len(case.labels), listed)
    label = {"label": case.labels[0]} if len(case.labels) == 1 else {}
    return {"image": case.images, "case": str(Path(case.images[0]).parent / case.name), **label}


def check_image(
    paths: Sequence[str], grids: Sequence[Grid | None], *, resample: bool | str = False
) -> tuple[list[str], Grid | None]:
    """Check the sequences of a case, for `scripts.data.case_checks.check_cases`.

    Args:
        paths: of the four sequences.
        grids: of the same; None for a file that cannot be read.
        resample: whether the sequences may lie on different grids, which have to overlap.

    Returns:
        The problems, and the grid that the label must lie on; None if that is unknown.
    """
    try:
        check_sequences(paths)
    except InputError as error:
        return [str(error)], None
    describe = describe_missing_overlap if parse_flag(resample, "resample") else describe_grid_mismatch
    problem = describe(paths, grids) if None not in grids else ""
    return [problem] if problem else [], grids[REFERENCE]
