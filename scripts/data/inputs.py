"""Finding the cases of an input: a file, a folder, DICOM series or a datalist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError
from scripts.common.names import is_dicom, is_nifti, unique_names
from scripts.data.datalist import load_datalist

Case = dict[str, Any]


def list_cases(
    source: str | Path,
    *,
    split: str = "test",
    images_per_case: int = 1,
    find: Callable[[Path], list[Case]] | None = None,
) -> list[Case]:
    """List the cases of a file, a folder or a datalist.

    Args:
        source: a NIfTI file, a folder of NIfTI files, a folder that is a DICOM series or holds such folders, or a
            Decathlon-style datalist (`.json`) with paths relative to its own folder.
        split: section of the datalist.
        images_per_case: number of files of one image in the datalist.
        find: replaces `find_volumes` for images in several files.

    Returns:
        One `{"image": path or paths, "case": unique name}` per case, sorted by name, with `"label"` if there is one.
        Incomplete cases are listed too, and fail when they are loaded.

    Raises:
        InputError: `source` does not exist or holds no case.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "patient1.nii.gz").touch()
    >>> [case["case"] for case in list_cases(folder)]
    ['patient1']
    """
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a NIfTI file, a folder or a datalist.")
    if path.suffix == ".json":
        options = {"images_per_case": images_per_case, "check": False, "required": (split,), "allow_overlap": True}
        return load_datalist(path.parent, datalist_file=path.name, **options)[split]
    found = (find or find_volumes)(path)
    names = unique_names([case["case"] for case in found])
    return [{**case, "case": name} for case, name in zip(found, names, strict=True)]


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
        raise InputError(f"{path}: holds neither NIfTI (.nii, .nii.gz) nor DICOM; give another path.")
    return [{"image": str(volume), "case": str(volume)} for volume in found]


def _folder_volumes(folder: Path) -> list[Path]:
    """Find the NIfTI files of a folder, the folder itself if it is a DICOM series, and the series in its subfolders."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    volumes = [file for file in files if is_nifti(file)]
    if not volumes and any(is_dicom(file) for file in files):
        return [folder]
    subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    series = [sub for sub in subfolders if any(is_dicom(file) for file in sub.iterdir() if file.is_file())]
    return volumes + series
