"""Names of cases and of their files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")


def is_nifti(path: Path) -> bool:
    """Return whether a file is a NIfTI volume by its name; hidden files are not."""
    return path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")


def is_dicom(path: Path) -> bool:
    """Return whether a file has the prefix of DICOM."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def stem(path: str | Path) -> str:
    """Return the name of a file without its NIfTI suffix, or the name of a DICOM folder.

    >>> stem("imagesTr/img0001.nii.gz")
    'img0001'
    """
    name = Path(os.path.normpath(Path.cwd() / path)).name
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def unique_names(paths: Sequence[str]) -> list[str]:
    """Name each volume, so that no result overwrites another.

    Args:
        paths: paths of the volumes; equal paths get equal names.

    Returns:
        The stems. Repeated stems are prefixed with their folders below the common one; if names still repeat, a number
        is appended.

    >>> unique_names(["a/ct.nii.gz", "b/ct.nii.gz", "b/mr.nii.gz"])
    ['a_ct', 'b_ct', 'mr']
    """
    volumes = list(dict.fromkeys(paths))
    stems = Counter(map(stem, volumes))
    common = Path(os.path.commonpath([Path(path).parent for path in volumes])) if volumes else Path()
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in volumes:
        folders = Path(path).relative_to(common).parts[:-1] if stems[stem(path)] > 1 else ()
        base = "_".join([*folders, stem(path)])
        candidates = (base if n == 1 else f"{base}_{n}" for n in range(1, len(volumes) + 1))
        names[path] = next(name for name in candidates if name not in taken)
        taken.add(names[path])
    return [names[path] for path in paths]


def name_path(image: str | Sequence[str]) -> str:
    """Return the path that an image is named after: its own, or the common beginning of several.

    Args:
        image: a path, or the paths of the files of one image, such as `p1/p1-t1n.nii.gz` and `p1/p1-t1c.nii.gz`.

    Returns:
        The path; for several, the common beginning of their names up to a dash or underscore, or else their folder.

    >>> name_path(["p1/p1-t1n.nii.gz", "p1/p1-t1c.nii.gz"])
    'p1/p1'
    """
    if isinstance(image, str):
        return image
    folder, stems = Path(image[0]).parent, [stem(path) for path in image]
    equal = takewhile(lambda letters: len(set(letters)) == 1, zip(*stems, strict=False))
    common = "".join(letters[0] for letters in equal)
    whole_words = common if len(image) == 1 else re.sub(r"[^-_]*$", "", common).rstrip("-_")
    return str(folder / whole_words) if whole_words else str(folder)
