"""A DICOM SEG file as one label map, by the labels of its segments."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.common.names import is_dicom, printable
from scripts.io.masks import NamedLabels, combine_masks, in_order
from scripts.io.memory import require_memory_for
from scripts.io.nifti import StoredVolume, check_geometry

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of segmentations, as masks and as label maps."""
IdsOf = Callable[[Iterable[str], Path], Mapping[str, int]]
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
_READ_ERRORS += (MemoryError, struct.error, InvalidDicomError)


def is_dicom_seg(path: Path) -> bool:
    """Return whether a file is a DICOM segmentation."""
    try:
        return is_dicom(path) and read_file_meta_info(path).get("MediaStorageSOPClassUID") in SEG_CLASSES
    except _READ_ERRORS:
        return False


def read_dicom_seg(path: Path, ids_of: IdsOf, *, ignore_id: int) -> tuple[StoredVolume, NamedLabels]:
    """Read a segmentation on the grid of its frames; positions without a frame are background.

    Args:
        path: a DICOM SEG file.
        ids_of: returns the label ids of the segments' labels, of which the others are ignored; the path is for its
            messages.
        ignore_id: value of ignored voxels.

    Returns:
        The label map, and the same labels with their counts. Where segments overlap, the highest id is kept.

    Raises:
        InputError: the file cannot be read, holds probabilities, names two segments alike, its frames are no evenly
            spaced volume, or it does not fit into memory.

    Source:
        DICOM PS3.3, A.51; read by highdicom. The patient's coordinates of DICOM are LPS, here RAS.
    """
    import highdicom  # here, because it takes a second to import and few cohorts need it

    name = printable(path)
    try:
        seg = highdicom.seg.segread(path)
        return _read(seg, path, ids_of, ignore_id=ignore_id)
    except InputError:
        raise
    except _READ_ERRORS as error:
        why = printable(" ".join(str(error).split()) or type(error).__name__)
        raise InputError(f"{name}: cannot be read as DICOM SEG ({why}); export it again, or as NIfTI.") from error


def _read(seg: pydicom.Dataset, path: Path, ids_of: IdsOf, *, ignore_id: int) -> tuple[StoredVolume, NamedLabels]:
    name = printable(path)
    if seg.segmentation_type.value == "FRACTIONAL":
        raise InputError(f"{name}: holds probabilities (FRACTIONAL), not labels; export it as BINARY or LABELMAP.")
    numbers = {seg.get_segment_description(number).segment_label: number for number in seg.segment_numbers}
    if len(numbers) < seg.number_of_segments:
        raise InputError(f"{name}: two segments have the same label; give each a name of its own.")
    geometry = seg.get_volume_geometry(allow_missing_positions=True)
    if geometry is None:
        raise InputError(f"{name}: its frames are no evenly spaced volume; export it again, or as NIfTI.")
    grid = Grid(geometry.spatial_shape[::-1], (_LPS_TO_RAS @ geometry.affine)[:, [2, 1, 0, 3]])
    check_geometry(grid, name)
    require_memory_for(grid.shape, 2, name=name)
    ids = ids_of(numbers, path)
    order = in_order(numbers, ids, ignore_id=ignore_id)

    def masks() -> Iterator[tuple[str, int, np.ndarray]]:
        for label, label_id in order:
            frames = seg.get_volume(segment_numbers=[numbers[label]], combine_segments=True, relabel=True)
            yield label, label_id, frames.array.T != 0

    found = combine_masks(masks(), grid.shape, ignore_id=ignore_id, highest_id=max(ids.values()))
    return StoredVolume(found.labels, grid.affine), found
