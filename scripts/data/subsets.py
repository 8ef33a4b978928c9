"""Nested subsets of a data set by subject, to study how results grow with the amount of data."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.common.errors import InputError
from scripts.common.names import stem
from scripts.common.settings import setting_problems

logger = logging.getLogger(__name__)


def share_of_subjects(cases: Sequence[Mapping[str, Any]], *, share: float, seed: int) -> list[Mapping[str, Any]]:
    """Take a share of the subjects with all of their cases.

    Subjects are ranked by a hash of their name and the seed, and the first ones are taken: the subset of a smaller
    share is contained in that of a larger one, whatever the order of the cases.

    Args:
        cases: of a datalist. The subject is `patient`, or where there is none the image's file name.
        share: of the subjects, rounded, at least one; 1 takes all.
        seed: of the ranking.

    Raises:
        InputError: `share` is outside 0.001 to 1, or there are fewer cases than processes.

    >>> cases = [{"image": f"{n}.nii.gz", "patient": str(n // 2)} for n in range(8)]
    >>> [case["image"] for case in share_of_subjects(cases, share=0.5, seed=0)]
    ['2.nii.gz', '3.nii.gz', '4.nii.gz', '5.nii.gz']
    """
    if problems := setting_problems({"data_share": share}):
        raise InputError(problems[0])
    if share == 1:
        return list(cases)
    ranked = sorted({_subject(case) for case in cases}, key=lambda name: _rank(name, seed))
    taken = set(ranked[: max(1, math.floor(share * len(ranked) + 0.5))])
    found = [case for case in cases if _subject(case) in taken]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if len(found) < processes:
        raise InputError(f"data_share {share} leaves {len(found)} cases for {processes} processes: start fewer.")
    counts = len(taken), len(ranked), len(found), len(cases)
    logger.info("data_share %s: training with %d of %d subjects, %d of %d cases", share, *counts)
    return found


def _subject(case: Mapping[str, Any]) -> str:
    image = case["image"] if isinstance(case["image"], str) else case["image"][0]
    return str(case.get("patient") or stem(image))


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()
