"""List the cases of a BraTS download as a datalist with folds, split by patient; no image is copied or changed.

Run `python -m scripts.prepare_brats TRAINING_DATA`.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.brats.sequences import FoundCase, check_sequences, find_cases
from scripts.common.errors import InputError, raise_all
from scripts.common.files import write_text
from scripts.common.locks import FolderLock
from scripts.common.names import is_nifti, printable
from scripts.data.folds import assign_folds

logger = logging.getLogger(__name__)

_TIME_POINT = re.compile(r"(BraTS-\w+-\d{5})-\d{3}", re.IGNORECASE)


def prepare_brats(source: Path, out: Path | None = None, *, folds: int = 5, seed: int = 0) -> Path:
    """Write a datalist: cases with a label in "training", each with its fold; those without in "test".

    The channels of each image are t1n, t1c, t2w, t2f. The time points of a patient (BraTS-GLI-00005-000 and
    BraTS-GLI-00005-001) share a fold; where names have no such form, each case is a patient.

    Args:
        source: folder of case folders in the layout of BraTS 2023 or 2021, see `scripts.brats.sequences.find_cases`.
        out: the JSON file; `dataset_0.json` in `source` by default. Its paths are relative to `source`.
        folds: number of folds.
        seed: of the split into folds.

    Returns:
        The path of the datalist.

    Raises:
        InputError: there are no cases or none has a label, a sequence is missing or has two files, two cases have one
            name, there are fewer patients than folds, or `out` is no name for a datalist or holds another one.
    """
    if not source.is_dir():
        raise InputError(f"{source}: not a folder; give the one that holds the case folders")
    if seed < 0:
        raise InputError(f"seed is {seed}: give 0 or more")
    path = out or source / "dataset_0.json"
    if path.suffix != ".json" or path.is_dir():
        raise InputError(f"{path}: not a name for a datalist; give the path of a file that ends in .json")
    text = json.dumps(brats_datalist(source, folds=folds, seed=seed), indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        raise InputError(f"{path}: lists other cases or folds than these; remove it, or set out to another file")
    with FolderLock(path.parent, setting="out"):
        write_text(path, text)
    return path


def brats_datalist(source: Path, *, folds: int, seed: int) -> dict[str, Any]:
    """Return the content of the datalist; see `prepare_brats`."""
    cases = find_cases(source)
    if not cases:
        example = "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz or BraTS2021_00000/BraTS2021_00000_t1.nii.gz"
        raise InputError(f"{source}: no cases found, such as {example}; give the folder of the case folders")
    raise_all(_problems(cases), source, "add, remove or rename these files, or move the cases away")
    _warn_of_others(cases, source)
    labelled = [case for case in cases if case.labels]
    if not labelled:
        raise InputError(
            f"{source}: none of {len(cases)} cases has a label, such as {cases[0].name}-seg.nii.gz; add them"
        )
    fold_of = assign_folds((patient(case.name) for case in labelled), folds=folds, seed=seed)
    training = [{**_item(case, source), "fold": fold_of[patient(case.name)]} for case in labelled]
    test = [_item(case, source) for case in cases if not case.labels]
    patients = {patient(case.name) for case in cases}
    logger.info("%s: %d cases of %d patients, %d without a label", source, len(cases), len(patients), len(test))
    return {"name": "BraTS", "training": training, "test": test}


def patient(case: str) -> str:
    """Return the patient of a case: its name without the time point, or the whole name if it has none.

    >>> patient("BraTS-GLI-00005-001")
    'BraTS-GLI-00005'
    """
    match = _TIME_POINT.fullmatch(case)
    return match[1] if match else case


def _item(case: FoundCase, source: Path) -> dict[str, Any]:
    images = [Path(path).relative_to(source).as_posix() for path in case.images]
    label = {"label": Path(case.labels[0]).relative_to(source).as_posix()} if case.labels else {}
    return {"image": images, **label, "patient": patient(case.name)}


def _warn_of_others(cases: Sequence[FoundCase], source: Path) -> None:
    """Log images that are in no case, such as a label without images or a sequence of another name."""
    listed = {path for case in cases for path in (*case.images, *case.labels)}
    found = sorted(path for depth in ("*", "*/*", "*/*/*") for path in source.glob(depth) if is_nifti(path))
    others = [printable(path) for path in found if str(path) not in listed]
    if others:
        logger.warning("%s: left out %d images that are in no case, such as %s", source, len(others), others[0])


def _problems(cases: Sequence[FoundCase]) -> list[str]:
    problems = []
    for case in cases:
        try:
            check_sequences(case.images)
        except InputError as error:
            problems.append(str(error))
        if len(case.labels) > 1:
            problems.append(f"{', '.join(case.labels)}: {len(case.labels)} labels of one case: keep one.")
    for name, count in Counter(case.name for case in cases).items():
        if count > 1:
            folders = [str(Path(case.images[0]).parent) for case in cases if case.name == name]
            problems.append(f"{', '.join(folders)}: {count} cases named {name}: keep one.")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit code 2 and one line for each problem."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_brats", description=__doc__)
    parser.add_argument("source", type=Path, help="folder with a folder for each case")
    parser.add_argument("--out", type=Path, help="datalist to write (default: SOURCE/dataset_0.json)")
    parser.add_argument("--folds", type=int, default=5, help="number of folds (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the split into folds (default: 0)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = prepare_brats(args.source, args.out, folds=args.folds, seed=args.seed)
    except (InputError, OSError) as error:
        parser.exit(2, f"prepare_brats: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "prepare_brats: stopped, nothing was written\n")
    logger.info("wrote %s", path)
    return 0
