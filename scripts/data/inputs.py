"""Finding the cases of an input: a file, a folder, DICOM series or a datalist."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError
from scripts.common.names import is_dicom, is_nifti, printable, unique_names
from scripts.data.case_checks import image_files
from scripts.data.datalist import load_datalist

Case = dict[str, Any]
MAX_DATALIST_BYTES = 1 << 28
"""About a million cases."""
_LISTED_NAMES = 5
logger = logging.getLogger(__name__)


def list_cases(
    source: str | Path,
    *,
    output_dir: str | Path | None = None,
    split: str | Sequence[str] = "test",
    images_per_case: int = 1,
    optional_labels: bool = False,
    find: Callable[[Path], list[Case]] | None = None,
    pictures: bool = False,
) -> list[Case]:
    """List the cases of a file, a folder or a datalist.

    Args:
        source: a NIfTI file, a folder of NIfTI files, a folder that is a DICOM series or holds such folders, or a
            Decathlon-style datalist (`.json`) with paths relative to its own folder.
        output_dir: folder of the results. It must not hold the inputs, except for a single image without a label.
        split: section of the datalist; of several, the first that holds cases.
        images_per_case: number of files of one image in the datalist.
        optional_labels: whether cases of other sections than `test` may lack a label too.
        find: replaces `find_volumes` for images of other kinds or in several files.
        pictures: whether the datalist may list pictures such as PNG.

    Returns:
        One `{"image": path or paths, "case": unique name}` per case, sorted by name, with `"label"` if there is one.
        Cases that are incomplete or cannot be read are listed too, and fail when they are loaded.

    Raises:
        InputError: `source` is not a path, does not exist, cannot be read or holds no case, or `output_dir` holds
            inputs.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "patient1.nii.gz").touch()
    >>> [case["case"] for case in list_cases(folder)]
    ['patient1']
    """
    if not isinstance(source, str | os.PathLike) or not str(source) or "\0" in str(source):
        raise InputError(f"input is {source!r}: give the path of a NIfTI file, a folder or a datalist.")
    path = Path(source)
    try:
        size = path.stat().st_size
        if path.suffix == ".json":
            splits = [split] if isinstance(split, str) else split
            options = {"optional_labels": optional_labels, "pictures": pictures}
            cases = _from_datalist(path, size, splits, images_per_case, **options)
        else:
            found = (find or find_volumes)(path)
            names = unique_names([case["case"] for case in found])
            cases = [{**case, "case": name} for case, name in zip(found, names, strict=True)]
    except FileNotFoundError as error:
        choices = "give a NIfTI file, a folder or a datalist"
        raise InputError(f"{printable(path)}: no such file or folder; {choices}.") from error
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read ({error.strerror}); correct the path.") from error
    if output_dir is not None:
        _refuse_inputs_in(output_dir, path, cases)
    return cases


def find_volumes(path: Path) -> list[Case]:
    """Find volumes of one file or DICOM series each.

    Args:
        path: see `list_cases`; a DICOM file means the series in its folder.

    Returns:
        One `{"image": path, "case": path}` per volume.

    Raises:
        InputError: there is no volume.
    """
    found = [path]
    if path.is_dir():
        found = _folder_volumes(path)
    elif not is_nifti(path):
        found = [path.parent] if is_dicom(path) else []
    if not found:
        raise InputError(f"{printable(path)}: holds neither NIfTI (.nii, .nii.gz) nor DICOM; give another path.")
    return [{"image": str(volume), "case": str(volume)} for volume in found]


def _folder_volumes(folder: Path) -> list[Path]:
    """Find the entries of a folder that are NIfTI by their name, or else the folder itself, and its series.

    Folders, broken links and the like with such a name are taken too: they fail by name instead of being overlooked.
    """
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    volumes = [entry for entry in entries if is_nifti(entry)]
    others = [entry for entry in entries if not is_nifti(entry)]
    series = [entry for entry in others if entry.is_dir() and _may_be_series(entry)]
    if not volumes and _may_be_series(folder):
        return [folder, *series]
    if overlooked := sorted({entry.name for entry in others} - {entry.name for entry in series}):
        listed = printable(", ".join([*overlooked[:_LISTED_NAMES], "..."][: len(overlooked)]))
        count, where = len(overlooked), printable(folder)
        logger.warning("%s: left out %d that are neither volume nor series: %s", where, count, listed)
    return volumes + series


def _may_be_series(folder: Path) -> bool:
    """Return whether a folder holds DICOM files, or cannot be read; the reader of the series reports the latter."""
    try:
        return any(is_dicom(entry) for entry in folder.iterdir())
    except OSError:
        return True


def _from_datalist(path: Path, size: int, splits: Sequence[str], images_per_case: int, **more: bool) -> list[Case]:
    """Return the first section of a datalist that holds cases."""
    if not path.is_file():
        raise InputError(f"{printable(path)}: is a folder, a pipe or a device, not a datalist; give another path.")
    if size > MAX_DATALIST_BYTES:
        raise InputError(f"{printable(path)}: has {size / 1e6:.0f} MB, too many for a datalist; give another file.")
    options = {"images_per_case": images_per_case, "check": False, **more}
    options |= {"required": splits if len(splits) == 1 else (), "allow_overlap": True}
    sections = load_datalist(path.parent, datalist_file=path.name, **options)
    found = next((name for name in splits if sections[name]), "")
    if not found:
        raise InputError(f"{printable(path)}: lists no cases as {' or '.join(splits)}; list some.")
    if len(splits) > 1:
        logger.info('%s: read the %d cases of "%s"', printable(path), len(sections[found]), found)
    return sections[found]


def _refuse_inputs_in(output_dir: str | Path, source: Path, cases: Sequence[Case]) -> None:
    """Refuse a folder of results that holds inputs: results would overwrite them, or be the inputs of the next run."""
    inputs = [case["label"] for case in cases if "label" in case]
    if source.is_dir() or source.suffix == ".json":
        inputs += [file for case in cases for file in image_files(case)]
    folders = {os.path.dirname(file): file for file in inputs}  # noqa: PTH120 (fast for a million cases)
    if source.is_dir():
        folders[str(source)] = str(source)
    results = os.path.realpath(output_dir)
    for folder, file in folders.items():
        if os.path.realpath(folder) == results:
            raise InputError(
                f"output_dir is {printable(output_dir)}, where inputs lie ({printable(file)}): results would overwrite "
                "them or be segmented by the next run; set output_dir to another folder."
            )
