import itertools
import json
import subprocess
import sys
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

from scripts.common.errors import InputError
from scripts.io.dicom_result import save_object
from scripts.io.dicom_seg import read_dicom_seg
from scripts.io.dicom_seg_writing import import_highdicom, make_seg
from tests.scripts.io.dicom_files import write_series
from tests.scripts.io.dicom_readers import aligned, seg_labels
from tests.scripts.io.test_dicom_result import NAMES, some_labels, some_result

UNIT = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (0, -1, 0), (0, 0, -1)]
AXES = [axes for axes in itertools.product(UNIT, repeat=2) if np.dot(*axes) == 0]
"""Directions of rows and columns: all axial, sagittal and coronal ones."""
TILT = Rotation.from_euler("xyz", [5, -7, 9], degrees=True)


def written(folder, **options):
    path = folder.with_suffix(".dcm")
    save_object(make_seg(some_result(folder, **options)), path)
    return path


@pytest.mark.parametrize("tilt", [Rotation.identity(), TILT], ids=["straight", "oblique"])
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_label_map_of_any_acquisition_is_read_back(tmp_path, axes, tilt):
    folder = write_series(tmp_path / "series", axes=tilt.apply(axes))
    labels = some_labels(folder)
    np.testing.assert_array_equal(seg_labels(written(folder), labels.affine), labels.array)


def test_own_reader_of_the_label_filter_reads_it(tmp_path):
    folder = write_series(tmp_path / "series")
    ids = {name: class_id for class_id, name in NAMES.items()}
    stored, _ = read_dicom_seg(written(folder), lambda names, _: {name: ids[name] for name in names}, ignore_id=255)
    labels = some_labels(folder)
    np.testing.assert_array_equal(aligned(nib.Nifti1Image(stored.stored, stored.affine), labels.affine), labels.array)


def test_dcmqi_reads_the_same_voxels(tmp_path):
    """A reader in C++, by the Quantitative Image Informatics for Cancer Research project."""
    folder = write_series(tmp_path / "series", axes=TILT.apply(np.eye(3)[:2]))
    program = Path(sys.executable).with_name("segimage2itkimage")
    options = ["--inputDICOM", written(folder), "--outputDirectory", tmp_path, "-t", "nii"]
    subprocess.run([program, *options], check=True, capture_output=True)
    labels = some_labels(folder)
    np.testing.assert_array_equal(aligned(nib.load(tmp_path / "1.nii.gz"), labels.affine), labels.array)
    described = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]
    assert [segment["SegmentLabel"] for group in described for segment in group][-3:] == list(NAMES.values())


def test_label_map_without_any_organ_keeps_all_segments_and_the_grid(tmp_path):
    folder = write_series(tmp_path / "series")
    path = written(folder, ids=(0,))
    assert not seg_labels(path, some_labels(folder).affine).any()
    seg = highdicom.seg.segread(path)
    assert [seg.get_segment_description(number).segment_label for number in seg.segment_numbers] == list(NAMES.values())


def test_single_slice_is_read_back(tmp_path):
    folder = write_series(tmp_path / "series", n=1, SliceThickness=3)
    volume = highdicom.seg.segread(written(folder)).get_volume(combine_segments=True)
    np.testing.assert_array_equal(volume.array.T, some_labels(folder).array)


def test_segments_have_codes_sides_and_the_algorithm(tmp_path):
    seg = highdicom.seg.segread(written(write_series(tmp_path / "series")))
    kidney = seg.get_segment_description(2)
    kind = kidney.segmented_property_type
    assert (kind.value, kind.scheme_designator, kind.meaning) == ("64033007", "SCT", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    algorithm = kidney.algorithm_identification
    assert (algorithm.name, algorithm.version) == ("Bundle", "1.2.3")
    assert highdicom.color.CIELabColor.from_dicom_value(kidney.RecommendedDisplayCIELabValue).to_rgb() == (34, 102, 136)


def test_source_instances_study_and_frame_of_reference_are_referred_to(tmp_path):
    seg = pydicom.dcmread(written(write_series(tmp_path / "series", PatientID="7", StudyDate="20200101")))
    series = seg.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == "1.2.3"
    uids = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert uids == {f"1.2.3.{n + 1}" for n in range(6)}
    assert (seg.PatientID, seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("7", "1.2.5", "1.2.4")
    assert seg.SeriesInstanceUID != "1.2.3"
    frames = seg.PerFrameFunctionalGroupsSequence
    assert {f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for f in frames} == uids


def test_same_input_gives_the_same_bytes(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "series")
    first = written(folder).read_bytes()
    code = f"""
from pathlib import Path
from tests.scripts.io.test_dicom_seg_writing import written
written(Path({str(folder)!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert folder.with_suffix(".dcm").read_bytes() == first


def test_missing_highdicom_is_named_with_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match="output_format dicomseg needs highdicom; install it with: pip install"):
        import_highdicom()


def test_series_that_highdicom_refuses_is_refused_with_its_reason(tmp_path):
    folder = write_series(tmp_path / "series", PatientSex="unclear")
    with pytest.raises(InputError, match=r"the series does not suit DICOM SEG \(ValueError: 'unclear' is not"):
        written(folder)
