import json

import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data.inputs import list_cases
from scripts.data.picture_inputs import list_pictures
from tests.scripts.io.dicom_files import write_picture, write_series


def test_pictures_and_volumes_of_a_folder_are_cases_if_pictures_are_wanted(tmp_path):
    for name in ("b.PNG", "a.nii.gz", "c.jpeg", ".d.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [case["case"] for case in list_pictures(tmp_path)] == ["b", "c", "a"]
    assert [case["case"] for case in list_cases(tmp_path)] == ["a"]
    assert [case["case"] for case in list_pictures(tmp_path / "b.PNG")] == ["b"]


def test_dicom_without_a_place_in_the_patient_is_a_picture_and_a_series_is_none(tmp_path):
    for name in ("b.dcm", "IM_0001"):
        write_picture(tmp_path / name, np.zeros((4, 6), np.uint8))
    write_series(tmp_path / "ct")
    assert [case["case"] for case in list_pictures(tmp_path)] == ["IM_0001", "b"]
    assert [case["image"] for case in list_pictures(tmp_path / "b.dcm")] == [str(tmp_path / "b.dcm")]
    for source in (tmp_path / "ct", next((tmp_path / "ct").iterdir())):
        assert [case["image"] for case in list_pictures(source)] == [str(tmp_path / "ct")]


def test_missing_picture_is_a_wrong_path(tmp_path):
    with pytest.raises(InputError, match=r"a.png: no such file or folder"):
        list_pictures(tmp_path / "a.png")


@pytest.mark.parametrize("pictures", [True, False])
def test_datalist_lists_pictures_only_if_they_are_wanted(tmp_path, pictures):
    (tmp_path / "list.json").write_text(json.dumps({"test": ["a.png"]}))
    if pictures:
        assert list_pictures(tmp_path / "list.json")[0]["case"] == "a"
    else:
        with pytest.raises(InputError, match=r"is not a .nii or .nii.gz file; convert it"):
            list_cases(tmp_path / "list.json")
