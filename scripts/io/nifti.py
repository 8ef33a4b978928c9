"""Reading NIfTI files to their last byte."""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from scripts.common.errors import InputError
from scripts.common.files import require_regular_file
from scripts.common.grids import Grid
from scripts.common.names import printable
from scripts.io.memory import require_memory_for

SPACING_RANGE_MM = (0.01, 50.0)
MAX_ORIGIN_MM = 1e5
MAX_VOLUME_M3 = 3.0
"""Twice a whole-body CT. Resampling a field of view that is ten times too wide needs a thousand times the memory."""
MAX_DEFLATION = 1032
"""Bytes that one byte of a gzip file can hold."""
_MAX_EXTENSION_BYTES = 1 << 26
_MAX_PADDING_BYTES = 1 << 20
_HEADER_ERRORS = (HeaderDataError, OverflowError, MemoryError)
_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, *_HEADER_ERRORS)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredVolume:
    """A volume as its file stores it; the intensities are `stored * slope + inter`.

    Attributes:
        stored: (X, Y, Z), in the dtype of the file, which takes less memory than float intensities; (X, Y, Z, C) if it
            was read `with_channels` and has any.
        affine: (4, 4), voxel indices to mm in RAS.
        slope: factor, without unit.
        inter: offset, in the unit of the intensities.
        header: of the NIfTI file, if it was one.
    """

    stored: np.ndarray
    affine: np.ndarray
    slope: float = 1.0
    inter: float = 0.0
    header: nib.Nifti1Header | None = None

    @property
    def grid(self) -> Grid:
        """The grid that the voxels lie on."""
        return Grid(self.stored.shape[:3], self.affine)

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest intensity; both are NaN if any voxel is."""
        ends = [float(end) * self.slope + self.inter for end in (self.stored.min(), self.stored.max())]
        return min(ends), max(ends)

    def values(self) -> np.ndarray:
        """Return the intensities, float32, (X, Y, Z) or (X, Y, Z, C), computed in float64 plane by plane."""
        if self.slope == 1 and self.inter == 0:
            return np.ascontiguousarray(self.stored, dtype=np.float32)
        scaled = np.empty(self.stored.shape, dtype=np.float32)
        for plane, stored in zip(scaled, self.stored, strict=True):
            plane[...] = stored.astype(np.float64) * self.slope + self.inter
        return scaled


def read_nifti(
    path: str | os.PathLike[str],
    *,
    open_gzip: Callable[..., BinaryIO] = gzip.open,
    drop_axes: bool = False,
    with_channels: bool = False,
    flat: bool = False,
) -> StoredVolume:
    """Read a 3-D NIfTI file to its end, so that gzip compares the checksum.

    `nibabel.load` stops after the last voxel and therefore accepts a corrupted stream of the right length; it also
    corrects invalid headers by guesses. A file that stores no orientation, or two that contradict each other, is read
    with a warning.

    Args:
        path: a .nii or .nii.gz file.
        open_gzip: opens a .gz file as `gzip.open` does, with the same errors.
        drop_axes: read (X, Y, Z, 1), and more axes of length 1, as (X, Y, Z).
        with_channels: also read (X, Y, Z, C).
        flat: also read (X, Y), as (X, Y, 1).

    Returns:
        The volume, with intensities as they are stored.

    Raises:
        InputError: the file is missing, truncated, corrupted, too large for the memory or not a volume of real numbers,
            its header is invalid, or `check_geometry` refuses it. The message names the file.
    """
    name = printable(path)
    try:
        axes = slice(3 if with_channels else None)
        return _read_to_end(Path(path), name, open_gzip=open_gzip, drop_axes=drop_axes, axes=axes, flat=flat)
    except InputError:
        raise
    except FileNotFoundError as error:
        target = " where this link points" if Path(path).is_symlink() else ""
        raise InputError(f"{name}: no such file{target}; correct the path.") from error
    except _READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        fix = "correct its permissions" if isinstance(error, PermissionError) else "copy or export it again"
        raise InputError(f"{name}: cannot be read whole ({printable(reason)}); {fix}.") from error


def check_geometry(grid: Grid, path: object) -> None:
    """Refuse a volume that is not 3-D or has an impossible affine.

    Args:
        grid: shape and affine of the file.
        path: named in the message.

    Raises:
        InputError: there are not three dimensions, a spacing is outside `SPACING_RANGE_MM`, the affine is singular or
            not finite, or the field of view is larger than `MAX_VOLUME_M3` or farther away than `MAX_ORIGIN_MM`.
    """
    if len(grid.shape) != 3 or min(grid.shape) < 1:
        shape = tuple(grid.shape)
        raise InputError(f"{path}: has shape {shape}, need (X, Y, Z); split a series into one file per volume.")
    if not np.isfinite(grid.affine).all():
        raise InputError(f"{path}: its affine holds NaN or infinity; correct the header.")
    matrix = np.asarray(grid.affine, dtype=np.float64)[:3, :3]
    spacing_mm = np.linalg.norm(matrix, axis=0)
    low, high = SPACING_RANGE_MM
    if not np.all((spacing_mm >= low) & (spacing_mm <= high)):
        shown = tuple(round(float(mm), 4) for mm in spacing_mm)
        raise InputError(f"{path}: voxel spacing {shown} mm is outside {low}..{high} mm; correct the header.")
    if abs(np.linalg.det(matrix / spacing_mm)) < 1e-3:
        raise InputError(f"{path}: its affine is singular, two axes are parallel; correct the header.")
    if (farthest_mm := np.abs(grid.affine[:3, 3]).max()) > MAX_ORIGIN_MM:
        raise InputError(f"{path}: its first voxel is {farthest_mm / 1e3:.3g} m from the origin; correct the header.")
    if (volume_m3 := abs(np.linalg.det(matrix)) * math.prod(grid.shape) / 1e9) > MAX_VOLUME_M3:
        size = " x ".join(f"{mm * n:.5g}" for mm, n in zip(spacing_mm, grid.shape, strict=True))
        raise InputError(
            f"{path}: its field of view of {size} mm is {volume_m3:.3g} m3, a patient's is at most {MAX_VOLUME_M3:g}; "
            "correct the voxel spacing in the header."
        )


def check_intensities(volume: StoredVolume, path: object) -> None:
    """Refuse an image that holds NaN, infinity, values beyond float32 or a single value.

    Args:
        volume: the image.
        path: named in the message.

    Raises:
        InputError: the image holds one of these.
    """
    low, high = volume.value_range
    if not np.isfinite([low, high]).all():
        raise InputError(f"{path}: holds NaN or infinite voxels; export it again or replace them.")
    with np.errstate(over="ignore"):
        ends = np.array([low, high]).astype(np.float32)
    if not np.isfinite(ends).all():
        raise InputError(f"{path}: holds values from {low:g} to {high:g}, which float32 cannot hold; export it again.")
    if ends[0] == ends[1]:
        raise InputError(f"{path}: is constant, every voxel is {low:g}; this is not an image.")


def _read_to_end(
    path: Path, name: str, *, open_gzip: Callable[..., BinaryIO], drop_axes: bool, axes: slice, flat: bool
) -> StoredVolume:
    """Check the header, then read the voxels and what follows them; see `read_nifti`.

    Args:
        path: of the file.
        name: of the file, for messages.
        open_gzip: see `read_nifti`.
        drop_axes: see `read_nifti`.
        axes: those of a file of four that are the volume's; all of any other file are.
        flat: see `read_nifti`.
    """
    status = require_regular_file(path, "a NIfTI file")
    if status.st_size == 0:
        raise ValueError("0 bytes")
    is_gzip = path.suffix.lower() == ".gz"
    with open_gzip(path) if is_gzip else path.open("rb") as file:
        header = _read_header(file, capacity=status.st_size * (MAX_DEFLATION if is_gzip else 1), name=name)
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        shape = header.get_data_shape()
        shape = (*shape, 1) if flat and len(shape) == 2 else shape
        while drop_axes and len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        check_geometry(Grid(shape[axes] if len(shape) == 4 else shape, affine), name)
        require_memory_for(shape, header.get_data_dtype().itemsize, name=name)
        voxels = ArrayProxy(file, header, mmap=False)  # a mapped file that is cut short kills the process
        stored = voxels.get_unscaled()
        rest = file.read(_MAX_PADDING_BYTES)  # gzip compares the checksum at the end
        if rest.strip(b"\0") or file.read(1):
            raise ValueError("it goes on after the last voxel that its header announces")
    return StoredVolume(stored.reshape(shape, order="F"), affine, float(voxels.slope), float(voxels.inter), header)


def _read_header(file: BinaryIO, *, capacity: int, name: str) -> nib.Nifti1Header:
    """Read and check a header, except for the geometry.

    Args:
        file: unpacked, at its beginning.
        capacity: bytes that it holds at most.
        name: of the file.
    """
    start = file.read(nib.Nifti2Header.sizeof_hdr)
    kinds = [kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(start)]
    if not kinds:
        raise ValueError("not a NIfTI file")
    block = start[: kinds[0].sizeof_hdr]
    as_stored = kinds[0](block, check=False)
    _check_fields(as_stored, name)
    header = kinds[0](block)  # with the fields corrected that do not matter here
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise InputError(f"{name}: has values of type {dtype}, need integers or floats; export it again.")
    announced = header.get_data_offset() + math.prod(header.get_data_shape()) * dtype.itemsize
    if announced > capacity:
        raise ValueError(f"its header announces {announced} bytes, the file holds at most {capacity}")
    _warn_of_guesses(as_stored, name)
    return header


def _check_fields(header: nib.Nifti1Header, name: str) -> None:
    """Refuse fields that nibabel would correct or ignore although the volume depends on them.

    Args:
        header: as it is stored.
        name: of the file.
    """
    sform, qform, units = (int(header[key]) for key in ("sform_code", "qform_code", "xyzt_units"))
    slope, inter, offset = (float(header[key]) for key in ("scl_slope", "scl_inter", "vox_offset"))
    qfac, *spacing = (round(float(size), 4) for size in header["pixdim"][:4])
    length = sum(float(header[f"quatern_{axis}"]) ** 2 for axis in "bcd")
    first = header.sizeof_hdr + 4
    by_qform = sform == 0 and qform > 0
    scaled = slope != 0 and not math.isnan(slope)
    problems = {
        f"sform_code is {sform} and qform_code {qform}, need 0 to 5": not {sform, qform} <= set(range(6)),
        f"voxel spacing {spacing} mm is not above 0": sform == 0 and not all(mm > 0 for mm in spacing),
        f"pixdim[0] is {qfac:g}, need 1 or -1": by_qform and qfac not in (-1, 0, 1),
        "its quaternion is longer than 1": by_qform and length > 1 + 1e-6,
        "its unit of length is not mm": units & 7 in (1, 3),
        f"scl_slope is {slope:g} and scl_inter {inter:g}": scaled and not np.isfinite([slope, inter]).all(),
        f"vox_offset is {offset:g}, need {first} or a little more": not first <= offset <= first + _MAX_EXTENSION_BYTES,
    }
    for problem in [problem for problem, found in problems.items() if found][:1]:
        raise InputError(f"{name}: {problem}; correct the header.")


def _warn_of_guesses(header: nib.Nifti1Header, name: str) -> None:
    """Log where a header leaves a choice; see `_check_fields`."""
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    matrix = np.array([header[f"srow_{axis}"][:3] for axis in "xyz"], dtype=np.float64)
    spacing_mm = np.linalg.norm(matrix, axis=0)
    guesses = {
        "scl_slope is NaN; the intensities are taken as they are stored": np.isnan(header["scl_slope"]),
        "stores no orientation, so left and right are unknown; X is taken to run to the left": sform == qform == 0,
        "sform and qform contradict each other about left and right; the sform is used": sform > 0
        and qform > 0
        and (np.linalg.det(matrix) < 0) != (header["pixdim"][0] < 0),
        "sform and pixdim contradict each other about the voxel spacing; the sform is used": sform > 0
        and not np.allclose(header["pixdim"][1:4], spacing_mm, rtol=0.01),
    }
    for guess in [guess for guess, made in guesses.items() if made]:
        _warn_once(f"{name}: {guess}")


@cache
def _warn_once(message: str) -> None:
    """Log a warning; a file is read more than once."""
    logger.warning(message)
