"""Preparing all cases of a training ahead, into the store."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai.data import DataLoader
from monai.transforms import Compose

from scripts.common.errors import InputError
from scripts.common.failures import exit_if_failed
from scripts.common.progress import progress_bar
from scripts.data.datasets import StoredCaseDataset
from scripts.data.store import case_bytes
from scripts.inference.evaluator import CaseDataset
from scripts.inference.loader import CaseLoader

_SAMPLED_CASES = 100
logger = logging.getLogger(__name__)

Case = Mapping[str, Any]


def build_store(
    cases: Sequence[Sequence[Case]], transforms: Sequence[Compose], *, cache_dir: str | Path, num_workers: int = 0
) -> None:
    """Prepare cases into the store; a case that cannot be prepared does not stop the run.

    Cases that are in the store are read and compared with their checksums, and prepared again if they are damaged. So
    a run that was stopped continues where it was, and a run on a finished store checks it.

    Args:
        cases: sections of a datalist.
        transforms: of each section, as its dataset has them.
        cache_dir: see `StoredCaseDataset`.
        num_workers: processes that prepare cases; 0 prepares in this one.

    Raises:
        InputError: the disk has less space than the cases need, by the size of those that are there, or of the first
            one; or see `StoredCaseDataset`.
        SystemExit: cases failed; the message names them.
    """
    pairs = zip(cases, transforms, strict=True)
    stores = [StoredCaseDataset(section, transform, cache_dir=cache_dir) for section, transform in pairs]
    work = [{"case": str(item["case"]), "store": n, "item": item} for n, s in enumerate(stores) for item in s.data]
    dataset = CaseDataset(work, partial(_prepare, stores))
    _require_space(dataset, stores)
    loader = CaseLoader(DataLoader(dataset, batch_size=1, num_workers=num_workers, collate_fn=list))
    failed = {}
    for [result] in progress_bar(iterable=loader, total=len(work), desc="cases", unit="case"):
        if result.get("error"):
            failed[result["case"]] = result["error"]
            logger.error("case %s failed: %s\n%s", result["case"], result["error"], result["traceback"])
    logger.info(
        "%s: %d of %d cases are prepared, %d failed", cache_dir, len(work) - len(failed), len(work), len(failed)
    )
    exit_if_failed(failed, len(work))


def _prepare(stores: Sequence[StoredCaseDataset], task: Mapping[str, Any]) -> dict[str, str]:
    """Prepare a case if the store lacks it or holds it damaged."""
    stores[task["store"]].prepared(task["item"])
    return {"case": task["case"]}


def _require_space(dataset: CaseDataset, stores: Sequence[StoredCaseDataset]) -> None:
    """Compare the free space with what the missing cases need.

    Raises:
        InputError: names both.
    """
    paths = [stores[task["store"]].file_of(task["item"]) for task in dataset.data]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    known = [path for path in paths if path.is_file()][:_SAMPLED_CASES]
    while missing and not known:
        number = missing.pop(0)
        known = [] if "error" in dataset[number] else [paths[number]]
    if not missing:
        return
    needed = len(missing) * sum(map(case_bytes, known)) / len(known)
    free = shutil.disk_usage(paths[0].parent).free
    logger.info("%d cases to prepare, about %.1f GB; %.1f GB are free", len(missing), needed / 1e9, free / 1e9)
    if needed > free:
        raise InputError(
            f"{paths[0].parent.parent}: {len(missing)} cases need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free; free space, or set another cache_dir. Cases that are prepared are kept."
        )
