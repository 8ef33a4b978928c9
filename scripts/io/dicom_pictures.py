"""DICOM files that are a picture or a sweep by themselves, such as ultrasound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from scripts.common.errors import InputError
from scripts.common.names import is_dicom, printable
from scripts.io.colours import to_gray
from scripts.io.dicom import READ_ERRORS, one_line, refuse_deflated
from scripts.io.memory import require_memory_for
from scripts.io.nifti import SPACING_RANGE_MM, StoredVolume

_WITH_PLACE = ("CT", "MR", "PT", "NM")
"""Modalities whose files are slices of a series."""
_TAGS = ("Modality", "ImageOrientationPatient", "SharedFunctionalGroupsSequence", "SequenceOfUltrasoundRegions")
_TAGS += ("Rows", "Columns", "NumberOfFrames", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
_TAGS += ("PixelSpacing", "NominalScannedPixelSpacing", "RescaleSlope", "RescaleIntercept")
_PALETTE = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
_ALL_TAGS = [*_TAGS, *(f"{table}{part}" for table in _PALETTE for part in ("Descriptor", "Data"))]
_TISSUE, _PLANE, _CM = 1, 1, 3
"""Codes of RegionDataType, RegionSpatialFormat and PhysicalUnitsXDirection."""


def is_dicom_picture(path: Path) -> bool:
    """Return whether a file is DICOM of pixels that have no place in the patient, such as ultrasound.

    Slices of series, and what cannot be read, are not.
    """
    try:
        header = _read_header(path) if is_dicom(path) else None
    except (*READ_ERRORS, InvalidDicomError):
        return False
    if header is None or "Rows" not in header or header.get("Modality") in _WITH_PLACE:
        return False
    placed = "ImageOrientationPatient" in header or "SharedFunctionalGroupsSequence" in header
    return header.get("Modality") == "US" or not placed


def read_dicom_picture(path: str | Path) -> StoredVolume:
    """Read a DICOM file as a volume whose slices are its frames.

    Colours become gray, palettes and YBR included; MONOCHROME1 is inverted, so that large values are bright. Frames are
    read one at a time.

    Args:
        path: of the file.

    Shape:
        Z frames of (H, W) become (W, H, Z). The axes lie as those of a picture; a pixel without a size is 1 x 1 mm, and
        frames are 1 mm apart.

    Raises:
        InputError: the file is damaged or deflated, holds no pixels, or colours of more than 8 bits, or does not fit
            into memory.
    """
    name = printable(path)
    try:
        header = _read_header(Path(path))
        shape = int(header.Columns), int(header.Rows), int(header.get("NumberOfFrames") or 1)
        itemsize = 1 if header.BitsStored <= 8 else 2
        require_memory_for(shape, itemsize, name=name)
        volume = np.empty(shape[::-1], dtype=np.dtype(f"{'i' if header.PixelRepresentation else 'u'}{itemsize}"))
        for plane, frame in zip(volume, _gray_frames(path, header, name), strict=True):
            plane[...] = frame
        scaling = [float(header.get(tag) or default) for tag, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))]
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{name}: is DICOM, which needs pydicom 3 and Pillow ({error}); export it as PNG.") from error
    except (*READ_ERRORS, InvalidDicomError) as error:
        raise InputError(f"{name}: cannot be read ({one_line(error)}); copy or export it again, or as PNG.") from error
    height_mm, width_mm = _spacing_mm(header) or (1.0, 1.0)
    return StoredVolume(volume.transpose(2, 1, 0), np.diag([-width_mm, -height_mm, 1.0, 1.0]), *scaling)


def pixel_spacing_mm(path: str | Path) -> tuple[float, float] | None:
    """Return height and width of a pixel of a DICOM file that can be read; None if it does not tell.

    Of ultrasound, they are those of the regions that show tissue; if these differ, as of two images side by side, there
    is no one size.
    """
    return _spacing_mm(_read_header(Path(path)))


def _read_header(path: Path) -> pydicom.Dataset:
    with path.open("rb") as file:
        refuse_deflated(file)
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_ALL_TAGS)
    list(header)  # converts the elements: pydicom raises errors of invalid ones when they are used
    return header


def _gray_frames(path: str | Path, header: pydicom.Dataset, name: str) -> Iterator[np.ndarray]:
    # here, as programs that import a transform may lack Pillow, or have a pydicom before 3
    from PIL import Image
    from pydicom.pixels import apply_color_lut, iter_pixels

    kind = header.PhotometricInterpretation
    inverted = -1 if header.PixelRepresentation else 2**header.BitsStored - 1
    for pixels in iter_pixels(path):
        if kind == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, header)
            pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
        if pixels.ndim == 3:
            if pixels.dtype != np.uint8:
                raise InputError(f"{name}: holds colours of {header.BitsStored} bits; export it with 8.")
            pixels = np.asarray(to_gray(Image.fromarray(pixels), name))
        yield inverted - pixels if kind == "MONOCHROME1" else pixels


def _spacing_mm(header: pydicom.Dataset) -> tuple[float, float] | None:
    regions = [region for region in header.get("SequenceOfUltrasoundRegions") or () if _shows_tissue(region)]
    sizes = [[10 * abs(float(region.get(f"PhysicalDelta{axis}") or 0)) for axis in "YX"] for region in regions]
    for tag in () if sizes else ("PixelSpacing", "NominalScannedPixelSpacing"):
        sizes += [[float(value) for value in header.get(tag)]] if header.get(tag) else []
    low, high = SPACING_RANGE_MM
    if not sizes or not np.allclose(sizes, sizes[0], rtol=0.01) or not all(low <= mm <= high for mm in sizes[0]):
        return None
    return sizes[0][0], sizes[0][1]


def _shows_tissue(region: pydicom.Dataset) -> bool:
    units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
    return (
        region.get("RegionSpatialFormat") == _PLANE and region.get("RegionDataType") == _TISSUE and units == (_CM,) * 2
    )
