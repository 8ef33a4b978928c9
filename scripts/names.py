"""Names of cases: what their results are called."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")


def stem(path: str | Path) -> str:
    """Return a volume's name without its folder and NIfTI suffix; of a DICOM folder its name."""
    name = Path(os.path.normpath(Path.cwd() / path)).name
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def unique_names(paths: Sequence[str]) -> list[str]:
    """Name each volume, so that none overwrites the results of another.

    Args:
        paths: of the volumes; the same path gets the same name each time.

    Returns:
        Their stems; where stems repeat, with the folders below their common one in front; and with a number
        behind where that repeats too.
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
    """Return a path to name an image after: its own, or what the files of an image in several have in common.

    Args:
        image: a path, or those of the sequences, such as `p1/p1-t1n.nii.gz` and `p1/p1-t1c.nii.gz`.

    Returns:
        The path; for several `p1/p1`, the beginning of all names up to a dash or underscore, or else their folder.
    """
    if isinstance(image, str):
        return image
    folder, stems = Path(image[0]).parent, [stem(path) for path in image]
    agreed = takewhile(lambda letters: len(set(letters)) == 1, zip(*stems, strict=False))
    common = "".join(letters[0] for letters in agreed)
    whole_words = common if len(image) == 1 else re.sub(r"[^-_]*$", "", common).rstrip("-_")
    return str(folder / whole_words) if whole_words else str(folder)
