"""Reading DICOM series: one folder each, or slices in memory."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.common.names import DICOM_INDEX, printable
from scripts.io.memory import require_memory_for
from scripts.io.nifti import StoredVolume, check_geometry

MAX_GAP_MM = 0.1
TOLERANCE = 1e-4
"""How far pixel spacings in mm and direction cosines of slices may differ; 0.05 mm over 512 pixels."""
_LENGTHS = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}
_OPTIONAL = ("NumberOfFrames", "PhotometricInterpretation", "Modality", "SliceThickness")
_TAGS = [*_LENGTHS, *_OPTIONAL, "SeriesInstanceUID", "FrameOfReferenceUID", "RescaleSlope", "RescaleIntercept"]
_PIXEL_TAGS = ("PixelData", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_CONVERT = "convert the series to NIfTI, for example with dcm2niix"
READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
READ_ERRORS += (MemoryError, struct.error, BytesLengthException)


def read_dicom_series(folder: Path) -> StoredVolume:
    """Read the slices of one series as a volume, in order of their positions.

    `monai.data.PydicomReader` 1.6.1 takes the order and the ends of the volume from InstanceNumber, leaves slices
    without one out, and takes the geometry of all slices from the first.

    Args:
        folder: folder with the slices of one series.

    Raises:
        InputError: `check_dicom_series` or `check_geometry` refuses the series, it does not fit into memory, or pydicom
            cannot decode it. The message names the folder, or the file if one is the cause.
    """
    return read_volume(check_dicom_series(folder), printable(folder))


def read_volume(slices: Sequence[pydicom.Dataset], name: str) -> StoredVolume:
    """Read the pixels of slices that `check_dicom_series` or `check_slices` returned.

    Args:
        slices: their headers, or all of them, in order.
        name: of the series, for messages.

    Raises:
        InputError: `check_geometry` refuses the grid, it does not fit into memory, or pydicom cannot decode it.
    """
    grid = series_grid(slices)
    check_geometry(grid, name)
    require_memory_for(grid.shape, np.dtype(np.float32).itemsize, name=name)
    volume = np.empty(grid.shape[::-1], dtype=np.float32)
    for plane, header in zip(volume, slices, strict=True):
        plane[...] = _read_pixels(header)
    return StoredVolume(volume.transpose(2, 1, 0), grid.affine)


def check_dicom_series(folder: Path) -> list[pydicom.Dataset]:
    """Refuse a DICOM folder that is not one evenly spaced series.

    Args:
        folder: folder with the slices of one series.

    Returns:
        The headers of the slices in order of their positions.

    Raises:
        InputError: the folder holds no series or several, a slice is damaged or has another geometry than the others,
            or slices are missing, duplicated, shifted or unevenly spaced.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{printable(folder)}: cannot be read ({error.strerror}); correct its permissions.") from error
    headers = [header for header in map(_read_header, paths) if header is not None]
    if not headers:
        raise InputError(f"{printable(folder)}: holds no DICOM files; give the folder of a series.")
    return check_slices(headers, printable(folder))


def check_slices(headers: Sequence[pydicom.Dataset], name: str) -> list[pydicom.Dataset]:
    """Refuse slices that are not one evenly spaced series, and return them in order of their positions.

    Args:
        headers: of the slices, each with its `filename`.
        name: of the series, for messages.

    Raises:
        InputError: as `check_dicom_series`.
    """
    for header in headers:
        if problem := _slice_problem(header):
            raise InputError(f"{_file(header)}: {problem}.")
    _check_one_series(name, headers)
    _check_alike(headers)
    return _check_gaps(name, headers)


def parse_slice(content: bytes, name: str, *, tags: Sequence[str] = ()) -> pydicom.Dataset | None:
    """Parse a DICOM file in memory, with its pixels; None if it has no prefix of DICOM.

    Args:
        content: of the file.
        name: of the file, for messages.
        tags: of elements that are kept besides those that a volume needs.

    Raises:
        InputError: it is damaged, or deflated as a whole.
    """
    try:
        refuse_deflated(BytesIO(content))
        dataset = pydicom.dcmread(BytesIO(content), specific_tags=[*_TAGS, *_PIXEL_TAGS, *tags])
        list(dataset)
    except InvalidDicomError:
        return None
    except READ_ERRORS as error:
        raise InputError(f"{name}: cannot be read ({one_line(error)}); copy or export the series again.") from error
    dataset.filename = name
    return dataset


def _file(header: pydicom.Dataset) -> str:
    return printable(header.filename)


def _read_header(path: Path) -> pydicom.Dataset | None:
    """Read a DICOM header without the pixels; None for folders and files of other kinds."""
    if path.name.startswith(".") or path.name == DICOM_INDEX or path.is_dir():
        return None
    try:
        if not path.is_file() or path.stat().st_size == 0:
            raise ValueError("it is empty, a broken link or no file")
        with path.open("rb") as file:
            refuse_deflated(file)
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        list(header)  # converts the elements: pydicom raises errors of invalid ones when they are used
        return header
    except InvalidDicomError as error:
        if path.suffix.lower() not in (".dcm", ".ima"):
            return None
        raise InputError(f"{printable(path)}: is not a DICOM file; copy or export the series again.") from error
    except READ_ERRORS as error:
        why = one_line(error)
        raise InputError(f"{printable(path)}: cannot be read ({why}); copy or export the series again.") from error


def refuse_deflated(file: BinaryIO) -> None:
    """Raise ValueError if a file is compressed as a whole: pydicom inflates it before the size is known."""
    read_preamble(file, force=False)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise ValueError("it is deflated as a whole")


def _check_one_series(name: str, headers: Sequence[pydicom.Dataset]) -> None:
    """Refuse slices of several series, or whose positions have different origins."""
    series = defaultdict(list)
    for header in headers:
        series[str(header.get("SeriesInstanceUID", "")), str(header.get("FrameOfReferenceUID", ""))].append(header)
    if len(series) > 1:
        listed = [f"{len(found)} files such as {printable(Path(found[0].filename).name)}" for found in series.values()]
        raise InputError(
            f"{name}: holds {len(series)} DICOM series by SeriesInstanceUID and FrameOfReferenceUID: "
            f"{', '.join(listed)}; put each into its own folder."
        )


def _slice_problem(header: pydicom.Dataset) -> str:
    """Return why a slice cannot be part of a volume, and what to do; "" if it can."""
    if int(header.get("NumberOfFrames") or 1) > 1:
        return f"holds {header.NumberOfFrames} frames, need one slice per file; {_CONVERT}"
    if (kind := header.get("PhotometricInterpretation", "")) != "MONOCHROME2":
        return f"has the PhotometricInterpretation {kind or 'none'}, need MONOCHROME2; give a CT or MR series"
    for tag, length in _LENGTHS.items():
        if tag not in header:
            return f"has no {tag}; give a CT or MR series"
        if _numbers(header, tag).shape != (length,) or not np.isfinite(_numbers(header, tag)).all():
            return f"its {tag} is {header.get(tag)}, need {length} numbers; export the series again"
    axes = _numbers(header, "ImageOrientationPatient").reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        return f"its ImageOrientationPatient is {header.ImageOrientationPatient}, not two perpendicular unit vectors"
    if header.get("Modality") == "CT" and "RescaleIntercept" not in header:
        return "has no RescaleIntercept, so HU are unknown; export the series again"
    scaling = [_numbers(header, tag) for tag in ("RescaleSlope", "RescaleIntercept") if tag in header]
    if not all(values.shape == (1,) and np.isfinite(values).all() for values in scaling) or 0 in scaling[:1]:
        return "its RescaleSlope or RescaleIntercept is invalid; export the series again"
    return ""


def _numbers(header: pydicom.Dataset, tag: str) -> np.ndarray:
    """Return the values of an element as floats, NaN if they are no numbers."""
    try:
        return np.atleast_1d(np.asarray(header.get(tag), dtype=np.float64))
    except (ValueError, TypeError):
        return np.array([np.nan])


def _check_alike(headers: Sequence[pydicom.Dataset]) -> None:
    """Refuse a slice that differs from most others in what a volume has only one of.

    RescaleSlope may differ, as in PET, but each slice or none must have one.
    """
    for tag in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        values = np.array([_numbers(header, tag) for header in headers])
        usual = np.median(values, axis=0)
        odd = np.flatnonzero((np.abs(values - usual) > TOLERANCE).any(axis=1))
        if odd.size:
            header = headers[odd[0]]
            found, others = f"{tag} is {header.get(tag)}", ", ".join(f"{value:g}" for value in usual)
            raise InputError(f"{_file(header)}: its {found}, that of the other slices {others}; remove or correct it.")
    lacking = [header for header in headers if "RescaleSlope" not in header]
    if 0 < len(lacking) < len(headers):
        raise InputError(f"{_file(lacking[0])}: has no RescaleSlope, unlike other slices; export the series again.")


def _check_gaps(name: str, headers: Sequence[pydicom.Dataset]) -> list[pydicom.Dataset]:
    """Return the slices in order of their positions, and refuse those that do not lie evenly on a line."""
    row, column = _numbers(headers[0], "ImageOrientationPatient").reshape(2, 3)
    normal = np.cross(row, column)
    ordered = sorted(headers, key=lambda header: float(_numbers(header, "ImagePositionPatient") @ normal))
    steps_mm = np.diff([_numbers(header, "ImagePositionPatient") for header in ordered], axis=0)
    if len(ordered) == 1:
        if not (_numbers(ordered[0], "SliceThickness") > 0).all():
            raise InputError(f"{_file(ordered[0])}: is a single slice without SliceThickness; give the whole series.")
        return ordered
    usual_mm = np.median(steps_mm, axis=0)
    odd = np.flatnonzero(np.linalg.norm(steps_mm - usual_mm, axis=1) > MAX_GAP_MM)
    if odd.size or usual_mm @ normal <= MAX_GAP_MM:
        place = odd[0] if odd.size else 0
        names = " and ".join(printable(Path(header.filename).name) for header in ordered[place : place + 2])
        raise InputError(
            f"{name}: slices {names} are {np.linalg.norm(steps_mm[place]):.2f} mm apart, others "
            f"{np.linalg.norm(usual_mm):.2f} mm: slices are missing, duplicated or shifted; export the series again."
        )
    return ordered


def series_grid(slices: Sequence[pydicom.Dataset]) -> Grid:
    """Return the grid of a series; its axes are columns, rows and slices.

    Args:
        slices: headers in order of their positions. DICOM positions are in LPS.
    """
    first, last = (_numbers(header, "ImagePositionPatient") for header in (slices[0], slices[-1]))
    row, column = _numbers(slices[0], "ImageOrientationPatient").reshape(2, 3)
    row_mm, column_mm = _numbers(slices[0], "PixelSpacing")
    if len(slices) > 1:
        step_mm = (last - first) / (len(slices) - 1)
    else:
        step_mm = np.cross(row, column) * _numbers(slices[0], "SliceThickness")
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * column_mm, column * row_mm, step_mm, first])
    shape = (int(slices[0].Columns), int(slices[0].Rows), len(slices))
    return Grid(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _read_pixels(header: pydicom.Dataset) -> np.ndarray:
    """Return the intensities of a slice, (rows, columns) float64."""
    try:
        dataset = header if "PixelData" in header else pydicom.dcmread(header.filename)
        pixels = dataset.pixel_array
        if pixels.shape != (header.Rows, header.Columns):
            raise ValueError(f"they have shape {pixels.shape}")
    except READ_ERRORS as error:
        raise InputError(
            f"{_file(header)}: its pixels cannot be decoded ({one_line(error)}); copy or export the series again, or "
            f"{_CONVERT}."
        ) from error
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    return pixels * float(1 if slope is None else slope) + float(intercept or 0)


def one_line(error: BaseException) -> str:
    """Return the beginning of a message, which may be long, without line breaks."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return printable(text if len(text) <= 200 else f"{text[:200]} ...")
