"""Label maps as RTSTRUCT: closed contours in the planes of the source's slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import contourpy
import numpy as np
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import UID, RTStructureSetStorage
from scipy import ndimage
from scipy.spatial import cKDTree

from scripts.common.organs import snomed_codes
from scripts.io.dicom_result import DicomResult, new_object

_DETACHED_STUDY = UID("1.2.840.10008.3.1.2.3.1")  # the class that RTSTRUCT names studies by


def make_rtstruct(result: DicomResult) -> pydicom.Dataset:
    """Return a label map as a structure set, one ROI per class; a class without voxels has an ROI without contours.

    Contours run half-way between the centres of voxels inside and outside (level 0.5 of marching squares), so that a
    voxel belongs to an organ exactly if its centre lies inside. A region with holes is one contour, joined to its
    holes by bridges of no width (the keyhole technique of the standard): readers that unite contours fill no hole.

    Source:
        DICOM PS3.3, A.19 and C.8.8.5 to C.8.8.8. The contours are contourpy's, which comes with matplotlib. rt-utils
        1.2.7 draws contours through the centres of the outermost voxels instead, erases lines of voxels beside holes,
        gives UIDs by chance, needs OpenCV, and has had no release since January 2023.
    """
    ds = new_object(result, RTStructureSetStorage, "RTSTRUCT")
    name = result.software[0]
    ds.SeriesDescription = f"{name[:50]} RTSTRUCT"
    ds.StructureSetLabel, ds.StructureSetName = "SEGMENTATION", name[:64]
    ds.StructureSetDate, ds.StructureSetTime = result.date_time
    ds.ApprovalStatus = "UNAPPROVED"
    ds.ReferencedFrameOfReferenceSequence = [_frame_of_reference(result.slices)]
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    boxes = ndimage.find_objects(result.labels, max_label=max(result.class_names))
    for class_id, label in result.class_names.items():
        ds.StructureSetROISequence.append(_roi(class_id, label, result))
        contours = list(_contours(result, class_id, boxes[class_id - 1])) if boxes[class_id - 1] else []
        entry = _item(ROIDisplayColor=list(result.colors[class_id]), ReferencedROINumber=class_id)
        if contours:
            entry.ContourSequence = contours
        ds.ROIContourSequence.append(entry)
        ds.RTROIObservationsSequence.append(_observation(class_id, label))
    return ds


def plane_contours(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outlines of the regions of a plane, holes joined by bridges of no width.

    Args:
        mask: voxels inside.

    Shape:
        mask: (columns, rows); contours: (n, 2) as column and row, in voxels from the centre of the first one, the first
        point not repeated at the end.
    """
    padded = np.pad(mask, 1).astype(np.float64)
    generator = contourpy.contour_generator(z=padded.T, fill_type="OuterOffset")
    regions = zip(*generator.filled(0.5, np.inf), strict=True)
    return [_keyhole([_corners(ring) for ring in np.split(points, ends[1:-1])]) - 1 for points, ends in regions]


def _corners(ring: np.ndarray) -> np.ndarray:
    """Return the points of a closed ring at which its direction changes, each once."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _keyhole(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Join an outline and its holes at their nearest points, forth and back."""
    joined = rings[0]
    for hole in rings[1:]:
        distances, nearest = cKDTree(joined).query(hole)
        b = distances.argmin()
        a = nearest[b]
        joined = np.concatenate([joined[: a + 1], np.roll(hole, -b, axis=0), hole[b : b + 1], joined[a:]])
    return joined


def _contours(result: DicomResult, class_id: int, box: tuple[slice, ...]) -> Iterator[pydicom.Dataset]:
    """Yield the contours of a class, by slice; the box is the part of the label map that holds the class."""
    corner = np.array([box[0].start, box[1].start])
    for index in range(box[2].start, box[2].stop):
        mask = result.labels[box[0], box[1], index] == class_id
        header = result.slices[index]
        for contour in plane_contours(mask) if mask.any() else ():
            points = _positions_mm(contour + corner, header)
            image = _item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
            kind, count = "CLOSED_PLANAR", len(points)
            item = _item(ContourImageSequence=[image], ContourGeometricType=kind, NumberOfContourPoints=count)
            numbers = [f"{value:.4f}" for value in points.ravel().tolist()]  # pydicom would check each of a million
            item.add(pydicom.DataElement("ContourData", "DS", numbers, already_converted=True))
            yield item


def _positions_mm(points: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Return points of a slice, (n, 2) as column and row, in the patient, (n, 3) in LPS."""
    axes = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    spacing_mm = np.array(header.PixelSpacing, dtype=np.float64)[::-1]
    return np.array(header.ImagePositionPatient, dtype=np.float64) + (points * spacing_mm) @ axes


def _frame_of_reference(slices: Sequence[pydicom.Dataset]) -> pydicom.Dataset:
    """Return the references to the study, the series and its instances."""
    first = slices[0]
    images = [_item(ReferencedSOPClassUID=s.SOPClassUID, ReferencedSOPInstanceUID=s.SOPInstanceUID) for s in slices]
    series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = _item(
        ReferencedSOPClassUID=_DETACHED_STUDY,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _roi(class_id: int, label: str, result: DicomResult) -> pydicom.Dataset:
    name, version, _ = result.software
    return _item(
        ROINumber=class_id,
        ReferencedFrameOfReferenceUID=result.slices[0].FrameOfReferenceUID,
        ROIName=label,
        ROIGenerationAlgorithm="AUTOMATIC",
        ROIGenerationDescription=f"{name[:50]} {version}",
        ROIDerivationAlgorithmIdentificationSequence=[
            _item(
                AlgorithmFamilyCodeSequence=[_code(*codes.cid7162.ArtificialIntelligence[:3])],
                AlgorithmName=name,
                AlgorithmVersion=version,
            )
        ],
    )


def _observation(class_id: int, label: str) -> pydicom.Dataset:
    organ, side = snomed_codes(label)
    kind = _code(organ[0], "SCT", organ[1])
    if side:
        kind.SegmentedPropertyTypeModifierCodeSequence = [_code(side[0], "SCT", side[1])]
    return _item(
        ObservationNumber=class_id,
        ReferencedROINumber=class_id,
        RTROIIdentificationCodeSequence=[kind],
        RTROIInterpretedType="ORGAN",
        ROIInterpreter=None,
    )


def _code(value: str, scheme: str, meaning: str) -> pydicom.Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _item(**elements: object) -> pydicom.Dataset:
    """Return a dataset of these elements."""
    item = pydicom.Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item
