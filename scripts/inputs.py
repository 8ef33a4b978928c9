"""What `--input` may be: a NIfTI file, a folder of them, DICOM series or a datalist, as a list of cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from scripts.datalist import load_datalist
from scripts.names import NIFTI_SUFFIXES, unique_names

MAX_GAP_MM = 0.1

Case = dict[str, str]


def list_cases(source: str | Path, *, split: str = "test") -> list[Case]:
    """Find the volumes that `source` stands for.

    Args:
        source: a NIfTI file, a folder with NIfTI files, a folder that is a DICOM series or holds such folders, or
            a Decathlon-style datalist (`.json`), whose paths are relative to its own folder.
        split: list of the datalist to take.

    Returns:
        One `{"image": path, "case": unique name}` per volume, in order of name; with `"label"` where a datalist
        names one.

    Raises:
        ValueError: `source` does not exist, or holds nothing that can be segmented.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; give --input a NIfTI file, a folder or a datalist.")
    if path.suffix == ".json":
        lists = load_datalist(path.parent, datalist_file=path.name, check=False, required=(split,), allow_overlap=True)
        return lists[split]
    if path.is_file():
        found = [{"image": str(path)}]
        if not is_nifti(path):
            found = [{"image": str(path.parent)}] if is_dicom(path) else []
    else:
        found = _folder_cases(path)
    if not found:
        raise ValueError(f"{path}: holds neither NIfTI (.nii, .nii.gz) nor DICOM; give --input another path.")
    names = unique_names([case["image"] for case in found])
    return [{**case, "case": name} for case, name in zip(found, names, strict=True)]


def is_nifti(path: Path) -> bool:
    """Tell whether a file's name is that of a NIfTI volume."""
    return path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")


def is_dicom(path: Path) -> bool:
    """Tell whether a file carries DICOM's magic number."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _folder_cases(folder: Path) -> list[Case]:
    """Find volumes in a folder: NIfTI files, the folder itself as DICOM series, or its subfolders as series."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    volumes = [{"image": str(file)} for file in files if is_nifti(file)]
    if not volumes and any(is_dicom(file) for file in files):
        return [{"image": str(folder)}]
    subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    series = [sub for sub in subfolders if any(is_dicom(file) for file in sub.iterdir() if file.is_file())]
    return volumes + [{"image": str(sub)} for sub in series]


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
