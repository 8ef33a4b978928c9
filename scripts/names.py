"""Names of cases: what their results are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
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
