"""A cohort of label maps with known errors: `python -m tools.label_cohort OUT --subjects 60 --errors 0.05`.

Writes `OUT/labels/NAME.nii.gz`, label maps as an automatic segmentation might produce them, and `OUT/errors.csv`, the
list of wrong labels and their kinds of error. Label ids are those of `scripts/common/organs.py`. Use it to try the
bundle `solf_filter`; results on phantoms are not evidence about patients.
"""

from __future__ import annotations

import argparse
import gzip
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from scripts.common.errors import InputError
from scripts.common.files import atomic_path, write_table
from scripts.common.organs import ORGANS
from tools.label_body import SPACING_MM, draw_label_map
from tools.label_errors import inject_errors

COLUMNS = ("case", "label", "organ", "kind")
logger = logging.getLogger(__name__)


class Subject(NamedTuple):
    """One person's label maps.

    Attributes:
        corrupted: (X, Y, Z) uint8, with errors.
        clean: (X, Y, Z) uint8, without errors.
        errors: (label, kind) of each wrong label of `corrupted`, ascending.
        affine: (4, 4), voxel indices to mm.
    """

    corrupted: np.ndarray
    clean: np.ndarray
    errors: list[tuple[int, str]]
    affine: np.ndarray


class Cohort(NamedTuple):
    """The files that `make_cohort` wrote.

    Attributes:
        labels: the maps with errors, one per case.
        truth: the maps without errors, one per case; empty unless requested.
        errors: the table of errors.csv.
    """

    labels: list[Path]
    truth: list[Path]
    errors: pd.DataFrame


def make_subject(seed: int, index: int, *, error_rate: float) -> Subject:
    """Make the label maps of one person; the body depends only on seed and index.

    Args:
        seed: of the cohort; not negative.
        index: of the person.
        error_rate: see `tools.label_errors.inject_errors`.
    """
    clean, affine = draw_label_map(np.random.default_rng([seed, index, 0]))
    rng = np.random.default_rng([seed, index, 1])
    corrupted, errors = inject_errors(clean, rate=error_rate, rng=rng, spacing_mm=SPACING_MM)
    return Subject(corrupted, clean, errors, affine)


def make_cohort(
    folder: str | Path, *, subjects: int, error_rate: float = 0.05, seed: int = 0, truth: bool = False
) -> Cohort:
    """Write the label maps of a cohort and the list of their errors.

    Args:
        folder: gets `labels/`, `errors.csv` and, if requested, `truth/`; created if missing.
        subjects: number of people; a larger cohort starts with those of a smaller one.
        error_rate: probability that an organ gets an error.
        seed: not negative; the same seed gives the same bytes.
        truth: write the maps without errors too.

    Raises:
        InputError: subjects, error_rate or seed is out of range.
    """
    if subjects < 1 or seed < 0:
        raise InputError(f"subjects is {subjects} and seed {seed}: give at least 1, and 0 or more.")
    written: dict[str, list[Path]] = {"labels": [], "truth": []}
    rows = []
    for index in range(subjects):
        case = f"person_{index:04d}"
        person = make_subject(seed, index, error_rate=error_rate)
        for name, volume in {"labels": person.corrupted, **({"truth": person.clean} if truth else {})}.items():
            written[name].append(Path(folder) / name / f"{case}.nii.gz")
            write_nifti(volume, person.affine, written[name][-1])
        rows += [(case, label, ORGANS[label], kind) for label, kind in person.errors]
    errors = pd.DataFrame(rows, columns=list(COLUMNS))
    write_table(errors, Path(folder) / "errors.csv")
    return Cohort(written["labels"], written["truth"], errors)


def write_nifti(volume: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write a volume, the same bytes each time."""
    image = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        # nibabel would write the time of day into the gzip header
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.label_cohort", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the cohort")
    parser.add_argument("--subjects", type=int, default=60, help="number of people (default: 60)")
    parser.add_argument("--errors", type=float, default=0.05, help="share of organs that get an error (default: 0.05)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--truth", action="store_true", help="also write the maps without errors, to OUT/truth")
    args = parser.parse_args(argv)
    try:
        cohort = make_cohort(args.out, subjects=args.subjects, error_rate=args.errors, seed=args.seed, truth=args.truth)
    except InputError as error:
        parser.error(str(error))
    logger.info("wrote %s: %d label maps, %d wrong labels", args.out, len(cohort.labels), len(cohort.errors))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
