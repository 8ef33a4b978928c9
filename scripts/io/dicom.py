"""Reading DICOM series, one folder each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from monai.data import PydicomReader
from pydicom.errors import InvalidDicomError

from scripts.common.errors import InputError
from scripts.io.nifti import StoredVolume, check_geometry

MAX_GAP_MM = 0.1
_READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)


def read_dicom_series(folder: Path) -> StoredVolume:
    """Read the slices of one series as a volume.

    Args:
        folder: folder with the slices of one series.

    Raises:
        InputError: `check_dicom_series` or `check_geometry` refuses the series, or pydicom cannot decode it. The
            message names the folder.
    """
    check_dicom_series(folder)
    reader = PydicomReader()
    try:
        array, meta = reader.get_data(reader.read(str(folder)))
    except _READ_ERRORS as error:
        raise InputError(f"{folder}: cannot be read as a DICOM series ({error}); export it again.") from error
    volume = StoredVolume(np.asarray(array), np.asarray(meta["affine"], dtype=np.float64))
    check_geometry(volume.grid, folder)
    return volume


def check_dicom_series(folder: Path) -> None:
    """Refuse a DICOM folder that is not one evenly spaced series.

    Args:
        folder: folder with the slices of one series.

    Raises:
        InputError: the folder holds no series or several, or slices are missing, duplicated or unevenly spaced.
    """
    headers = [header for header in map(_read_header, sorted(folder.iterdir())) if header is not None]
    if not headers:
        raise InputError(f"{folder}: holds no DICOM files; give the folder of a series.")
    series = Counter(str(header.get("SeriesInstanceUID", "")) for header in headers)
    if len(series) > 1:
        listed = ", ".join(f"{uid} ({n} files)" for uid, n in series.most_common())
        raise InputError(f"{folder}: holds {len(series)} DICOM series: {listed}; put each into its own folder.")
    for tag in ("ImagePositionPatient", "ImageOrientationPatient"):
        if any(tag not in header for header in headers):
            raise InputError(f"{folder}: slices without {tag}; give a CT or MR series.")
    if len(headers) > 1:
        _check_gaps(folder, headers)


def _read_header(path: Path) -> pydicom.Dataset | None:
    """Read a DICOM header without the pixels; None if the file is not DICOM."""
    tags = ["SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"]
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags) if path.is_file() else None
    except InvalidDicomError:
        return None


def _check_gaps(folder: Path, headers: Sequence[pydicom.Dataset]) -> None:
    """Refuse slices whose distances along their common normal differ."""
    row, column = np.reshape(np.asarray(headers[0].ImageOrientationPatient, dtype=float), (2, 3))
    normal = np.cross(row, column)
    positions_mm = np.sort([np.asarray(h.ImagePositionPatient, dtype=float) @ normal for h in headers])
    gaps_mm = np.diff(positions_mm)
    typical_mm = float(np.median(gaps_mm))
    odd = np.flatnonzero(np.abs(gaps_mm - typical_mm) > MAX_GAP_MM)
    if odd.size or typical_mm <= MAX_GAP_MM:
        place = odd[0] if odd.size else 0
        raise InputError(
            f"{folder}: slices are {gaps_mm[place]:.2f} mm apart at {positions_mm[place]:.1f} mm, elsewhere "
            f"{typical_mm:.2f} mm: slices are missing or duplicated; export the series again."
        )
