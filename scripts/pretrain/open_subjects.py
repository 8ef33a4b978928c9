"""The subjects of open data sets: an image and its labels, as masks in a folder or as one file with a list of names."""

from __future__ import annotations

import csv
import fnmatch
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.common.errors import InputError
from scripts.common.names import is_nifti, listed, printable, stem, unique_names

IMAGES = ("ct", "mri", "mr", "image")
"""Names of the image in the folder of a subject, without their suffix."""
MASKS = "segmentations"
SPLITS = {"train": "training", "training": "training", "val": "validation", "validation": "validation", "test": "test"}


class Subject(NamedTuple):
    """A subject of an open data set.

    Attributes:
        case: distinct name.
        folder: of the subject.
        image: NIfTI file.
        split: section of the datalist; "" if the data set does not say.
    """

    case: str
    folder: Path
    image: Path
    split: str


def find_subjects(sources: Sequence[Path]) -> tuple[list[Subject], list[str]]:
    """Find subjects: folders that hold an image, or folders of such folders.

    Args:
        sources: folders; one that holds subjects may have a `meta.csv` with the columns image_id and split.

    Returns:
        The subjects in the order of their folders, and folders that are none.

    Raises:
        InputError: a folder does not exist or holds no subject, or `meta.csv` is malformed or lacks a subject.
    """
    found: dict[Path, str] = {}
    others: list[str] = []
    for source in sources:
        if not source.is_dir():
            raise InputError(f"{printable(source)}: not a folder; give a folder of subjects, or that of one.")
        folders = [source] if _image_of(source) else sorted(path for path in source.iterdir() if path.is_dir())
        own = [folder for folder in folders if _image_of(folder)]
        others += [str(folder) for folder in folders if folder not in own]
        if not own:
            example = "s0000/ct.nii.gz, s0000/mri.nii.gz or s0000/image.nii.gz"
            raise InputError(f"{printable(source)}: holds no subjects, such as {example}; give another folder.")
        splits = read_splits(source / "meta.csv")
        if splits and (missing := [folder.name for folder in own if folder.name not in splits]):
            raise InputError(f"{printable(source / 'meta.csv')}: has no split of {listed(missing)}; add their rows.")
        found |= {folder.absolute(): splits.get(folder.name, "") for folder in own}
    names = unique_names([str(folder) for folder in found])
    subjects = [
        Subject(name, folder, _image_of(folder), split)
        for (folder, split), name in zip(found.items(), names, strict=True)
    ]
    return subjects, others


def read_splits(path: Path) -> Mapping[str, str]:
    """Return subject to section of the datalist of a data set's `meta.csv`; nothing if there is no such file.

    Raises:
        InputError: it cannot be read, lacks a column, or has an unknown split.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        rows = list(csv.DictReader(io.StringIO(text), delimiter=";" if first.count(";") else ",", strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{printable(path)}: cannot be read ({error}); download it again.") from error
    if not rows or not {"image_id", "split"} <= rows[0].keys():
        raise InputError(f"{printable(path)}: needs the columns image_id and split; correct or remove it.")
    unknown = sorted({str(row["split"]) for row in rows} - SPLITS.keys())
    if unknown:
        raise InputError(f"{printable(path)}: has the splits {listed(unknown)}; give train, val or test.")
    return {str(row["image_id"]): SPLITS[row["split"]] for row in rows}


def with_splits(subjects: Sequence[Subject]) -> list[Subject]:
    """Give subjects without a split one: where none has one, the last fifth by name, at least one, is validation."""
    if any(subject.split for subject in subjects):
        return [subject._replace(split=subject.split or "training") for subject in subjects]
    first = len(subjects) - max(1, len(subjects) // 5)
    return [
        subject._replace(split="training" if index < first else "validation") for index, subject in enumerate(subjects)
    ]


def _image_of(folder: Path) -> Path | None:
    files = {stem(path).lower(): path for path in sorted(folder.iterdir()) if is_nifti(path)}
    return next((files[name] for name in IMAGES if name in files), None)


def label_of(folder: Path, pattern: str) -> tuple[Path, Path | None]:
    """Return the label of a subject: its folder of masks, or a label map and the JSON file of its ids and names.

    Args:
        folder: of the subject.
        pattern: of the name of the label map.

    Raises:
        InputError: there is no label, or several.
    """
    if (folder / MASKS).is_dir():
        return folder / MASKS, None
    entries = sorted(folder.iterdir())
    labels = [path for path in entries if is_nifti(path) and fnmatch.fnmatch(path.name, pattern)]
    labels = [path for path in labels if path != _image_of(folder)]
    names = [path for path in entries if path.suffix == ".json"]
    for found, what in ((labels, f"label files named {pattern}"), (names, "JSON files of names")):
        if len(found) != 1:
            has = f"{len(found)} {what} ({listed([path.name for path in found])})" if found else f"no {what}"
            raise InputError(f"{printable(folder)}: has neither a folder {MASKS} nor one label: {has}; see --label.")
    return labels[0], names[0]
