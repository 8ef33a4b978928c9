import numpy as np
import pydicom
import pytest

from scripts.common.errors import InputError
from scripts.common.grids import GridArray
from scripts.common.organs import SNOMED_CODES, snomed_codes
from scripts.io.dicom import check_dicom_series, series_grid
from scripts.io.dicom_result import NO_DATE, dicom_result, new_object, source_headers
from tests.scripts.io.dicom_files import edit, editing, write_series

NAMES = {1: "liver", 2: "right kidney", 3: "left kidney"}
MORE = {
    "class_names": NAMES,
    "colors": {1: (140, 70, 45), 2: (34, 102, 136), 3: (46, 138, 184)},
    "software": ("Bundle", "1.2.3", "Its authors"),
}


def some_labels(folder, *, seed=0, ids=(0, 0, 1, 2)):
    """Random class ids on the grid of a series; none of them is the left kidney."""
    grid = series_grid(check_dicom_series(folder))
    return GridArray(np.random.default_rng(seed).choice(np.uint8(ids), grid.shape), grid.affine)


def some_result(folder, **options):
    return dicom_result(some_labels(folder, **options), folder, **MORE)


@pytest.mark.parametrize("name", SNOMED_CODES)
def test_snomed_codes_are_those_of_dicom(name):
    from pydicom.sr.codedict import codes

    code, meaning = SNOMED_CODES[name]
    known = getattr(codes.SCT, meaning.title().replace(" ", ""))
    assert (known.value, known.meaning) == (code, meaning)


def test_class_without_a_code_is_refused():
    with pytest.raises(InputError, match="right wing: has no SNOMED CT code; add it to SNOMED_CODES"):
        snomed_codes("right wing")


def test_uids_depend_on_source_and_label_map_alone(tmp_path):
    first, second = (some_result(write_series(tmp_path / name)) for name in "ab")
    assert first.uid("SEG") == second.uid("SEG")
    assert first.uid("SEG") != first.uid("RTSTRUCT")
    assert first.uid("SEG") != some_result(tmp_path / "a", seed=1).uid("SEG")


def test_label_map_of_another_grid_is_refused(tmp_path):
    folder = write_series(tmp_path / "series")
    moved = some_labels(folder)
    moved.affine[0, 3] += 1
    with pytest.raises(InputError, match="series: the label map lies on another grid than the series: "):
        dicom_result(moved, folder, **MORE)


def test_class_without_a_name_is_refused(tmp_path):
    folder = write_series(tmp_path / "series")
    with pytest.raises(InputError, match=r"the label map holds \[9\], which channel_def does not name"):
        dicom_result(some_labels(folder, ids=(0, 9)), folder, **MORE)


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_series_without_an_identity_is_refused(tmp_path, tag):
    folder = write_series(tmp_path / "series")
    editing(None, **{tag: None})(folder)
    with pytest.raises(InputError, match=rf"006\.dcm: has no {tag}, which a DICOM result refers to; export"):
        source_headers(folder)[0]


def test_uids_of_instances_are_taken_from_the_file_where_the_header_lost_them(tmp_path):
    folder = write_series(tmp_path / "series")
    for path in folder.iterdir():
        edit(path, SOPInstanceUID="", SOPClassUID="")
    assert [header.SOPInstanceUID for header in source_headers(folder)] == [f"1.2.3.{n + 1}" for n in range(6)]


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        ({}, (NO_DATE, "000000")),
        ({"StudyDate": "20200101"}, ("20200101", "000000")),
        ({"StudyDate": "20200101", "ContentDate": "20200102", "ContentTime": "101112"}, ("20200102", "101112")),
    ],
)
def test_date_is_that_of_the_source(tmp_path, dates, expected):
    assert some_result(write_series(tmp_path / "series", **dates)).date_time == expected


def test_patient_and_study_are_carried_over(tmp_path):
    given = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Zoë", "PatientID": "7", "PatientSex": "F"}
    ds = new_object(
        some_result(write_series(tmp_path / "series", **given)), pydicom.uid.RTStructureSetStorage, "RTSTRUCT"
    )
    assert {name: ds[name].value for name in given} == given
    assert (ds.StudyInstanceUID, ds.FrameOfReferenceUID) == ("1.2.5", "1.2.4")
    assert (ds.ManufacturerModelName, ds.SoftwareVersions, ds.Manufacturer) == ("Bundle", "1.2.3", "Its authors")
