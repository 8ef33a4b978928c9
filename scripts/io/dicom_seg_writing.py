"""Label maps as DICOM SEG."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless

from scripts.common.errors import InputError, reason
from scripts.common.organs import snomed_codes
from scripts.io.dicom_result import DicomResult


def make_seg(result: DicomResult) -> pydicom.Dataset:
    """Return a label map as a DICOM segmentation of type LABELMAP, one frame per slice of the source.

    All classes are described, also those without voxels, and all slices have a frame, also empty ones, so that
    readers get the grid of the source. The frames are compressed without loss (RLE).

    Raises:
        InputError: highdicom is not installed, or refuses the source, or a class has no SNOMED CT code.

    Source:
        DICOM PS3.3, A.51 and C.8.20; the object is made by highdicom. Its UIDs and dates, which are random or of
        today, are replaced by those of `DicomResult`.
    """
    hd = import_highdicom()
    name, version, maker = result.software
    date, time = result.date_time
    try:
        seg = hd.seg.Segmentation(
            source_images=result.slices,
            pixel_array=np.ascontiguousarray(result.labels.T, dtype=np.min_scalar_type(max(result.class_names))),
            segmentation_type=hd.seg.SegmentationTypeValues.LABELMAP,
            segment_descriptions=_segments(result, hd),
            series_instance_uid=result.uid("SEG", "series"),
            series_number=result.series_number,
            sop_instance_uid=result.uid("SEG", "instance"),
            instance_number=1,
            manufacturer=maker,
            manufacturer_model_name=name,
            software_versions=version,
            device_serial_number="none",
            content_label="SEGMENTATION",
            content_description=name[:64],
            series_description=f"{name[:50]} SEG",
            content_date=date,
            content_time=time,
            series_date=date,
            series_time=time,
            transfer_syntax_uid=RLELossless,
            omit_empty_frames=False,
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"the series does not suit DICOM SEG ({reason(error)}); set output_format to nifti."
        ) from error
    del seg.InstanceCreationDate, seg.InstanceCreationTime
    dimensions = result.uid("SEG", "dimensions")
    for item in seg.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return seg


def import_highdicom() -> ModuleType:
    """Import highdicom, which only results as DICOM SEG need.

    Raises:
        InputError: it is not installed.
    """
    try:
        import highdicom
        import highdicom.seg
    except ImportError as error:
        raise InputError("output_format dicomseg needs highdicom; install it with: pip install highdicom") from error
    return highdicom


def _segments(result: DicomResult, hd: ModuleType) -> list[pydicom.Dataset]:
    """Return the descriptions of all classes."""
    name, version, _ = result.software
    family = codes.cid7162.ArtificialIntelligence
    algorithm = hd.AlgorithmIdentificationSequence(name=name, family=family, version=version)
    segments = []
    for class_id, label in result.class_names.items():
        organ, side = snomed_codes(label)
        segment = hd.seg.SegmentDescription(
            segment_number=class_id,
            segment_label=label,
            segmented_property_category=codes.cid7150.AnatomicalStructure,
            segmented_property_type=hd.sr.CodedConcept(organ[0], "SCT", organ[1]),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*result.colors[class_id]),
        )
        if side:
            modifier = hd.sr.CodedConcept(side[0], "SCT", side[1])
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        segments.append(segment)
    return segments
