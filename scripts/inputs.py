"""What `--input` may be: a file, a folder, DICOM series, folders of sequences or a datalist, as a list of cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from scripts.datalist import load_datalist
from scripts.names import NIFTI_SUFFIXES, unique_names
from scripts.sequences import find_cases

MAX_GAP_MM = 0.1

Case = dict[str, Any]


def list_cases(source: str | Path, *, split: str = "test", images_per_case: int = 1) -> list[Case]:
    """Find the volumes that `source` stands for.

    Args:
        source: a NIfTI file, a folder with NIfTI files, a folder that is a DICOM series or holds such folders, or
            a Decathlon-style datalist (`.json`), whose paths are relative to its own folder. For images in four
            files instead a folder as `scripts.sequences.find_cases` reads it, or a datalist.
        split: list of the datalist to take.
        images_per_case: files of one image; above 1 these are the sequences of `scripts.sequences`.

    Returns:
        One `{"image": path or paths, "case": unique name}` per case, in order of name; with `"label"` where a
        datalist or a case's folder has one. Incomplete cases are listed too: whoever loads them refuses them.

    Raises:
        ValueError: `source` does not exist, or holds nothing that can be segmented.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; give --input a NIfTI file, a folder or a datalist.")
    if path.suffix == ".json":
        options = {"images_per_case": images_per_case, "check": False, "required": (split,), "allow_overlap": True}
        return load_datalist(path.parent, datalist_file=path.name, **options)[split]
    found = _sequence_cases(path) if images_per_case > 1 else _volume_cases(path)
    names = unique_names([case["case"] for case in found])
    return [{**case, "case": name} for case, name in zip(found, names, strict=True)]


def _sequence_cases(path: Path) -> list[Case]:
    """Find cases of several sequences, each still named by a path."""
    found = find_cases(path) if path.is_dir() else []
    if not found:
        wanted = "a case's folder with <case>-t1n.nii.gz, -t1c, -t2w, -t2f (or _t1, _t1ce, _t2, _flair)"
        raise ValueError(f"{path}: holds no such sequences; give --input {wanted}, a folder of such, or a datalist.")
    labels = [{"label": case.labels[0]} if case.labels else {} for case in found]
    named = [{"image": case.images, "case": str(Path(case.images[0]).parent / case.name)} for case in found]
    return [{**case, **label} for case, label in zip(named, labels, strict=True)]


def _volume_cases(path: Path) -> list[Case]:
    """Find single volumes, each still named by its path."""
    found = [path]
    if path.is_dir():
        found = _folder_volumes(path)
    elif not is_nifti(path):
        found = [path.parent] if is_dicom(path) else []
    if not found:
        raise ValueError(f"{path}: holds neither NIfTI (.nii, .nii.gz) nor DICOM; give --input another path.")
    return [{"image": str(volume), "case": str(volume)} for volume in found]


def is_nifti(path: Path) -> bool:
    """Tell whether a file's name is that of a NIfTI volume."""
    return path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")


def is_dicom(path: Path) -> bool:
    """Tell whether a file carries DICOM's magic number."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _folder_volumes(folder: Path) -> list[Path]:
    """Find volumes in a folder: NIfTI files, the folder itself as DICOM series, or its subfolders as series."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    volumes = [file for file in files if is_nifti(file)]
    if not volumes and any(is_dicom(file) for file in files):
        return [folder]
    subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    series = [sub for sub in subfolders if any(is_dicom(file) for file in sub.iterdir() if file.is_file())]
    return volumes + series


def check_dicom_series(folder: Path) -> None:
    """Refuse a DICOM folder that is not one evenly spaced series.

    Args:
        folder: with the slices of one series.

    Raises:
        ValueError: the folder holds several series, or slices are missing, doubled or unevenly spaced.
    """
    headers = [header for header in map(_header, sorted(folder.iterdir())) if header is not None]
    series = Counter(str(header.get("SeriesInstanceUID", "")) for header in headers)
    if len(series) > 1:
        listed = ", ".join(f"{uid} ({n} files)" for uid, n in series.most_common())
        raise ValueError(f"{folder}: holds {len(series)} DICOM series: {listed}; give each a folder of its own.")
    if any("ImagePositionPatient" not in header for header in headers):
        raise ValueError(f"{folder}: slices without ImagePositionPatient; give a CT or MR series.")
    if len(headers) > 1:
        _check_gaps(folder, headers)


def _header(path: Path) -> pydicom.Dataset | None:
    """Read a DICOM header without its pixels, or None where the file is something else."""
    tags = ["SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"]
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags) if path.is_file() else None
    except InvalidDicomError:
        return None


def _check_gaps(folder: Path, headers: Sequence[pydicom.Dataset]) -> None:
    """Compare the distances between neighbouring slices along their common normal."""
    row, column = np.reshape(np.asarray(headers[0].ImageOrientationPatient, dtype=float), (2, 3))
    normal = np.cross(row, column)
    positions_mm = np.sort([np.asarray(h.ImagePositionPatient, dtype=float) @ normal for h in headers])
    gaps_mm = np.diff(positions_mm)
    typical_mm = float(np.median(gaps_mm))
    odd = np.flatnonzero(np.abs(gaps_mm - typical_mm) > MAX_GAP_MM)
    if odd.size or typical_mm <= MAX_GAP_MM:
        place = odd[0] if odd.size else 0
        raise ValueError(
            f"{folder}: slices are {gaps_mm[place]:.2f} mm apart at {positions_mm[place]:.1f} mm, elsewhere "
            f"{typical_mm:.2f} mm: slices are missing or doubled; export the series again."
        )
