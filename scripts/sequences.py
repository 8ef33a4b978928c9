"""The four MR sequences of a brain tumour case: their order, their names in BraTS folders, their grids."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.grids import Grid, differences

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
"""The network's channels: T1, T1 with contrast, T2, FLAIR."""
REFERENCE = SEQUENCES.index("t1c")
"""The sequence on whose grid a result lies: it shows the enhancing tumour, and mostly has the finest slices."""
LABEL = "seg"

_OF_2021 = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
_KINDS = "|".join((*SEQUENCES, *_OF_2021, LABEL))
_FILE = re.compile(rf"(?:(?P<case>[^.].*)[-_])?(?P<kind>{_KINDS})\.nii(?:\.gz)?", re.IGNORECASE)
_PREPARE = (
    "BraTS input is co-registered, of 1 mm and skull-stripped; prepare such cases (for example with BraTS-Toolkit or "
    "brainles-preprocessing), or give --resample true, which puts all on t1c's grid by their affines and neither "
    "registers nor strips"
)


class FoundCase(NamedTuple):
    """What lies in a folder for one case: paths of the images in the order of the channels, and of the labels."""

    name: str
    images: list[str]
    labels: list[str]


def kind_of(path: str | Path) -> str | None:
    """Tell from a file's name in the layout of BraTS 2023 or 2021 which sequence, or "seg", it holds."""
    match = _FILE.fullmatch(Path(path).name)
    kind = match["kind"].lower() if match else None
    return _OF_2021.get(kind, kind)


def find_cases(folder: str | Path) -> list[FoundCase]:
    """Find cases in the folder of one, in a folder of such folders, or in one more above that.

    Args:
        folder: in the layout of BraTS 2023 (`<case>/<case>-t1n.nii.gz`, t1c, t2w, t2f, seg) or 2021
            (`<case>/<case>_t1.nii.gz`, t1ce, t2, flair, seg); files named by the sequence alone are of the case that
            their folder is named after.

    Returns:
        Cases in order of their paths, incomplete ones too; see `check_sequences`.
    """
    found: dict[tuple[Path, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    root = Path(folder)
    for path in sorted(path for depth in ("*", "*/*", "*/*/*") for path in root.glob(depth)):
        match, kind = _FILE.fullmatch(path.name), kind_of(path)
        if match and kind and path.is_file():
            name = match["case"] or path.absolute().parent.name
            found[path.parent, name][kind].append(str(path))
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
        ValueError: sequences are missing, there twice or in another order.
    """
    kinds = [kind_of(path) for path in paths]
    where = Path(paths[0]).parent if paths else "a case"
    wanted = ", ".join(SEQUENCES)
    for kind in SEQUENCES:
        same = [Path(path).name for path, its in zip(paths, kinds, strict=True) if its == kind]
        if len(same) > 1:
            raise ValueError(f"{where}: {kind} is there {len(same)} times ({', '.join(same)}): keep one.")
    if None not in kinds and (missing := [kind for kind in SEQUENCES if kind not in kinds]):
        raise ValueError(f"{where}: {', '.join(missing)} missing beside {Path(paths[0]).name}: give {wanted}.")
    if len(paths) != len(SEQUENCES):
        raise ValueError(f"{where}: {len(paths)} images: give {wanted}, in this order.")
    for path, kind, expected in zip(paths, kinds, SEQUENCES, strict=True):
        if kind not in (None, expected):
            raise ValueError(f"{path}: is {kind} by its name, where {expected} belongs: give {wanted}, in this order.")


def grid_problem(paths: Sequence[str], grids: Sequence[Grid]) -> str:
    """Say how sequences lie on other grids than the reference, and how to mend it; "" if they do not.

    Args:
        paths: of the four sequences.
        grids: of the same.
    """
    odd = []
    for name, grid in zip(SEQUENCES, grids, strict=True):
        if found := differences(grid, grids[REFERENCE]):
            odd.append(f"{name} has {found}")
    if not odd:
        return ""
    return f"{paths[REFERENCE]}: not all sequences lie on its grid: {'; '.join(odd)}. {_PREPARE}."
