"""Reading NIfTI files to their last byte."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from scripts.common.errors import InputError
from scripts.common.grids import Grid

SPACING_RANGE_MM = (0.01, 50.0)
_HEADER_ERRORS = (ImageFileError, HeaderDataError, OverflowError, MemoryError)
_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, *_HEADER_ERRORS)


@dataclass(frozen=True)
class StoredVolume:
    """A volume as its file stores it; the intensities are `stored * slope + inter`.

    Attributes:
        stored: (X, Y, Z), in the dtype of the file, which takes less memory than float intensities.
        affine: (4, 4), voxel indices to mm in RAS.
        slope: factor, without unit.
        inter: offset, in the unit of the intensities.
    """

    stored: np.ndarray
    affine: np.ndarray
    slope: float = 1.0
    inter: float = 0.0

    @property
    def grid(self) -> Grid:
        """The grid that the voxels lie on."""
        return Grid(self.stored.shape, self.affine)

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest intensity; both are NaN if any voxel is."""
        ends = [float(end) * self.slope + self.inter for end in (self.stored.min(), self.stored.max())]
        return min(ends), max(ends)

    def values(self) -> np.ndarray:
        """Return the intensities, (X, Y, Z) float32, computed in float64 plane by plane to save memory."""
        if self.slope == 1 and self.inter == 0:
            return np.ascontiguousarray(self.stored, dtype=np.float32)
        scaled = np.empty(self.stored.shape, dtype=np.float32)
        for plane, stored in zip(scaled, self.stored, strict=True):
            plane[...] = stored.astype(np.float64) * self.slope + self.inter
        return scaled


def read_nifti(path: str | os.PathLike[str]) -> StoredVolume:
    """Read a 3-D NIfTI file to its end, so that gzip compares the checksum.

    `nibabel.load` stops after the last voxel and therefore accepts a corrupted stream of the right length.

    Args:
        path: a .nii or .nii.gz file.

    Returns:
        The volume, with intensities as they are stored.

    Raises:
        InputError: the file is missing, truncated, corrupted or not a volume of real numbers, or `check_geometry`
            refuses it. The message names the file.
    """
    try:
        image, stored = _read_to_end(Path(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path.") from error
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read whole ({reason}); copy or export it again.") from error
    if stored.dtype.kind not in "iuf":
        raise InputError(f"{path}: has values of type {stored.dtype}, need integers or floats; export it again.")
    affine = np.asarray(image.affine, dtype=np.float64)
    volume = StoredVolume(stored, affine, float(image.dataobj.slope), float(image.dataobj.inter))
    check_geometry(volume.grid, path)
    return volume


def check_geometry(grid: Grid, path: object) -> None:
    """Refuse a volume that is not 3-D or has an impossible affine.

    Args:
        grid: shape and affine of the file.
        path: named in the message.

    Raises:
        InputError: there are not three dimensions, a spacing is outside `SPACING_RANGE_MM`, or the affine is singular
            or not finite.
    """
    if len(grid.shape) != 3 or 0 in grid.shape:
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


def check_intensities(volume: StoredVolume, path: object) -> None:
    """Refuse an image that holds NaN, infinity or a single value.

    Args:
        volume: the image.
        path: named in the message.

    Raises:
        InputError: the image holds one of these.
    """
    low, high = volume.value_range
    if not np.isfinite([low, high]).all():
        raise InputError(f"{path}: holds NaN or infinite voxels; export it again or replace them.")
    if low == high:
        raise InputError(f"{path}: is constant, every voxel is {low:g}; this is not an image.")


def _read_to_end(path: Path) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return the image and its unscaled array."""
    if path.stat().st_size == 0:
        raise ValueError("0 bytes")
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        header = file.read(nib.Nifti2Header.sizeof_hdr)
        classes = [c for c in (nib.Nifti1Image, nib.Nifti2Image) if c.header_class.may_contain_header(header)]
        if not classes:
            raise ValueError("not a NIfTI file")
        file.seek(0)
        image = classes[0].from_stream(file)
        stored = image.dataobj.get_unscaled()
        while file.read(1 << 20):  # gzip compares the checksum at the end
            pass
    return image, stored
