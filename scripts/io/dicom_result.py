"""A label map as a DICOM object that belongs to the series it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ImplicitVRLittleEndian, generate_uid

from scripts.common.errors import InputError
from scripts.common.files import atomic_path
from scripts.common.grids import GridArray, describe_mismatch
from scripts.common.names import printable
from scripts.io.dicom import check_dicom_series, series_grid

RGB = tuple[int, int, int]
NO_DATE = "19000101"
"""Date of a result whose source has none."""
_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID")
_MAY_BE_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
_MAY_BE_EMPTY += ("AccessionNumber", "ReferringPhysicianName")


@dataclass(frozen=True)
class DicomResult:
    """A label map on the grid of a DICOM series, and what describes it.

    Args:
        labels: class ids.
        slices: headers of the series in order of their positions, from `source_headers`.
        class_names: class id from 1 to name, all classes that the network knows.
        colors: class id to colour.
        software: name, version and maker of the bundle.

    Shape:
        labels: (columns, rows, slices).
    """

    labels: np.ndarray
    slices: Sequence[pydicom.Dataset]
    class_names: Mapping[int, str]
    colors: Mapping[int, RGB]
    software: tuple[str, str, str]

    @cached_property
    def _digest(self) -> str:
        voxels = np.ascontiguousarray(self.labels.T, dtype="<u2")
        return hashlib.sha256(voxels.data.cast("B")).hexdigest()

    def uid(self, *what: str) -> UID:
        """Return a UID that depends on the source, the label map, the software and `what` alone."""
        uids = [header.SOPInstanceUID for header in self.slices]
        return generate_uid(entropy_srcs=[*what, *uids, self._digest, *self.software, str(self.class_names)])

    @property
    def date_time(self) -> tuple[str, str]:
        """Date and time of the source, or of its study: a result has the same bytes in each run."""
        for kind in ("Content", "Acquisition", "Series", "Study"):
            if date := str(self.slices[0].get(f"{kind}Date") or ""):
                return date, str(self.slices[0].get(f"{kind}Time") or "000000")
        return NO_DATE, "000000"

    @property
    def series_number(self) -> int:
        """Number after those of the acquired series."""
        return 1000 + max(int(self.slices[0].get("SeriesNumber") or 0), 0)


def dicom_result(
    label_map: GridArray,
    folder: Path,
    *,
    class_names: Mapping[int, str],
    colors: Mapping[int, RGB],
    software: tuple[str, str, str],
) -> DicomResult:
    """Put a label map together with the headers of its series; see `DicomResult`.

    Args:
        label_map: class ids on the grid of the series.
        folder: the series.
        class_names: as in `DicomResult`; so are `colors` and `software`.
        colors: see there.
        software: see there.

    Raises:
        InputError: the series is damaged or lacks the UIDs that a result refers to, or the label map lies on another
            grid or holds a class without a name.
    """
    slices = source_headers(folder)
    if problem := describe_mismatch(label_map.grid, series_grid(slices)):
        raise InputError(f"{printable(folder)}: the label map lies on another grid than the series: {problem}.")
    if unknown := sorted(set(np.unique(label_map.array).tolist()) - {0, *class_names}):
        raise InputError(f"{printable(folder)}: the label map holds {unknown}, which channel_def does not name.")
    return DicomResult(label_map.array, slices, class_names, colors, software)


def source_headers(folder: Path) -> list[pydicom.Dataset]:
    """Return the complete headers of a series, without pixels, in order of their positions.

    Some tools remove the UIDs of an instance from its header and leave them in the file's meta information, from which
    they are taken then. The spacing between slices is that of their positions, also the thickness where it is missing.

    Raises:
        InputError: see `check_dicom_series`; or a slice has no UID of its study, series, frame of reference, instance
            or class.
    """
    slices = [pydicom.dcmread(header.filename, stop_before_pixels=True) for header in check_dicom_series(folder)]
    step_mm = round(float(np.linalg.norm(series_grid(slices).affine[:3, 2])), 6)
    for header in slices:
        header.SpacingBetweenSlices, header.SliceThickness = step_mm, header.get("SliceThickness") or step_mm
        header.SOPInstanceUID = header.get("SOPInstanceUID") or header.file_meta.MediaStorageSOPInstanceUID
        header.SOPClassUID = header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID
        if missing := [name for name in _IDENTITY if not header.get(name)]:
            raise InputError(
                f"{printable(header.filename)}: has no {missing[0]}, which a DICOM result refers to; export the series "
                "with its UIDs, or set output_format to nifti."
            )
        for name in _MAY_BE_EMPTY:
            if name not in header:
                setattr(header, name, None)
    return slices


def new_object(result: DicomResult, sop_class: UID, modality: str) -> pydicom.Dataset:
    """Return a dataset with patient, study, series, equipment and dates of a result, but without content."""
    source, (date, time) = result.slices[0], result.date_time
    ds = pydicom.Dataset()
    for name in ("SpecificCharacterSet", *_MAY_BE_EMPTY, "StudyInstanceUID", "StudyDescription", "FrameOfReferenceUID"):
        if name in source:
            ds.add(source[name])
    ds.PositionReferenceIndicator = source.get("PositionReferenceIndicator")
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = result.software[2], *result.software[:2]
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, result.series_number, 1
    ds.SeriesDate, ds.SeriesTime = date, time
    ds.SeriesInstanceUID, ds.SOPInstanceUID = result.uid(modality, "series"), result.uid(modality, "instance")
    ds.SOPClassUID, ds.OperatorsName = sop_class, None
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return ds


def save_object(dataset: pydicom.Dataset, path: Path) -> None:
    """Write a DICOM file atomically."""
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
