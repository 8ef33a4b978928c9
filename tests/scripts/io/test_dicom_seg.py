import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from scripts.common.errors import InputError
from scripts.common.organs import IDS_OF_NAMES
from scripts.io.dicom import read_dicom_series
from scripts.io.dicom_seg import is_dicom_seg, read_dicom_seg
from tests.scripts.io.dicom_files import write_series

NAMES = ("Spleen", "Tumour", "Liver")
_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime")
_PATIENT += ("AccessionNumber", "ReferringPhysicianName")


def write_seg(series, path, masks, *, names=NAMES, kind="BINARY"):
    """Write masks, (X, Y, Z, segments) on the grid of `read_dicom_series`, as DICOM SEG of a series."""
    images = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    for image in images:
        image.SOPClassUID, image.StudyInstanceUID = pydicom.uid.CTImageStorage, "1.2.5"
        image.SOPInstanceUID = image.get("SOPInstanceUID") or highdicom.UID()
        image.SliceThickness = image.get("SliceThickness") or 3
        for name in _PATIENT:
            setattr(image, name, "")
    normal = np.cross(*np.reshape([float(value) for value in images[0].ImageOrientationPatient], (2, 3)))
    images.sort(key=lambda image: np.dot(normal, [float(value) for value in image.ImagePositionPatient]))
    manual = highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    about = [
        highdicom.seg.SegmentDescription(n, name, codes.SCT.Organ, codes.SCT.Liver, manual)
        for n, name in enumerate(names, start=1)
    ]
    ids = {"series_instance_uid": highdicom.UID(), "sop_instance_uid": highdicom.UID(), "series_number": 1}
    made = {"manufacturer": "x", "manufacturer_model_name": "x", "software_versions": "1", "instance_number": 1}
    stored = np.ascontiguousarray(masks.transpose(2, 1, 0, 3))
    highdicom.seg.Segmentation(
        images, stored, kind, about, **ids, **made, device_serial_number="1", omit_empty_frames=kind == "BINARY"
    ).save_as(path)
    return path


def organs(shape):
    """Spleen and liver that overlap, a tumour in the liver, and slices without any."""
    masks = np.zeros((*shape, 3), np.uint8)
    masks[1:4, 2:6, 1:4, 0] = 1
    masks[2:7, 3:7, 2:5, 2] = 1
    masks[4:8, 5:7, 3:5, 1] = 1
    return masks


def ids_of(names, path):
    return {name: IDS_OF_NAMES[name.lower()] for name in names if name.lower() in IDS_OF_NAMES}


def expected_labels(masks):
    spleen, tumour, liver = (masks[..., n] > 0 for n in range(3))
    return np.select([liver, spleen, tumour], [5, 1, 255], 0)


def on_grid_of(volume, reference):
    """Return the voxels of a volume at the places of another one, 0 outside."""
    to_volume = np.linalg.inv(volume.affine) @ reference.affine
    indices = np.indices(reference.stored.shape).reshape(3, -1)
    found = np.rint(to_volume[:3, :3] @ indices + to_volume[:3, 3:]).astype(int)
    np.testing.assert_allclose(found, to_volume[:3, :3] @ indices + to_volume[:3, 3:], atol=1e-3)
    inside = ((found >= 0) & (found < np.array(volume.stored.shape)[:, None])).all(axis=0)
    values = np.zeros(indices.shape[1], volume.stored.dtype)
    values[inside] = volume.stored[tuple(found[:, inside])]
    return values.reshape(reference.stored.shape)


def check(series, path):
    reference = read_dicom_series(series)
    masks = organs(reference.stored.shape)
    write_seg(series, path, masks)
    assert is_dicom_seg(path)
    volume, found = read_dicom_seg(path, ids_of, ignore_id=255)
    np.testing.assert_array_equal(on_grid_of(volume, reference), expected_labels(masks))
    assert found.voxels == {name: int(masks[..., n].sum()) for n, name in enumerate(NAMES)}
    assert found.overlap == int((masks[..., 0] & masks[..., 2]).sum())
    assert volume.stored.dtype == np.uint8


def test_segments_of_an_oblique_series_lie_where_they_were_drawn(tmp_path):
    check(write_series(tmp_path / "ct"), tmp_path / "seg.dcm")


def test_segments_of_a_real_series_lie_where_they_were_drawn(series, tmp_path):
    check(series, tmp_path / "seg.dcm")


def test_slices_of_a_series_are_no_segmentation(tmp_path):
    assert not is_dicom_seg(next(write_series(tmp_path / "ct").iterdir()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("Liver", "Tumour", "Liver")}, "two segments have the same label; give each a name of its own."),
        ({"kind": "FRACTIONAL"}, "holds probabilities .FRACTIONAL., not labels; export it as BINARY or LABELMAP."),
    ],
)
def test_segmentations_that_are_no_label_maps_are_refused(tmp_path, options, message):
    masks = organs((10, 8, 6))
    path = tmp_path / "seg.dcm"
    write_seg(write_series(tmp_path / "ct"), path, masks.astype(float) if "kind" in options else masks, **options)
    with pytest.raises(InputError, match=f"^{path}: {message}$"):
        read_dicom_seg(path, ids_of, ignore_id=255)


def test_truncated_file_is_refused_with_its_name(tmp_path):
    path = write_seg(write_series(tmp_path / "ct"), tmp_path / "seg.dcm", organs((10, 8, 6)))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match=f"^{path}: cannot be read as DICOM SEG "):
        read_dicom_seg(path, ids_of, ignore_id=255)
