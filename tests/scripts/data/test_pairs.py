import json
import logging
import re

import pytest

from scripts.data.pairs import main


@pytest.fixture
def data(tmp_path):
    """Two scans each of ten participants, cleaned labels of all but one scan, and a label without an image."""
    for eid in range(1000001, 1000011):
        for visit in (2, 3):
            put(tmp_path, f"images/{eid}_{visit}_0.nii.gz")
            put(tmp_path, f"labels/{eid}_{visit}_0_cleaned.nii.gz")
    (tmp_path / "labels" / "1000010_3_0_cleaned.nii.gz").unlink()
    put(tmp_path, "labels/2000000_2_0_cleaned.nii.gz")
    put(tmp_path, "labels/decisions.csv")
    return tmp_path


def put(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()


def made(data, *options):
    assert main([str(data), *options]) == 0
    return json.loads((data / "dataset_0.json").read_text())


def test_scans_of_a_participant_stay_together(data, caplog):
    with caplog.at_level(logging.WARNING):
        sections = made(data, "--validation", "0.2", "--test", "0.1")
    patients = {name: {item["patient"] for item in items} for name, items in sections.items()}
    assert [len(patients[name]) for name in ("training", "validation", "test")] == [7, 2, 1]
    assert len(set.union(*patients.values())) == 10
    assert sum(map(len, sections.values())) == 19
    item = sections["training"][0]
    assert item["image"] == f"images/{item['patient']}_2_0.nii.gz"
    assert item["label"] == f"labels/{item['patient']}_2_0_cleaned.nii.gz"
    assert [record.getMessage() for record in caplog.records] == [
        "1 files without a label map are left out: 1000010_3_0.nii.gz",
        "1 files without an image are left out: 2000000_2_0_cleaned.nii.gz",
    ]


def test_same_seed_gives_the_same_split_and_another_one_another(data):
    assert made(data) == made(data) != made(data, "--seed", "1")


def test_other_names_are_patients_of_their_own_unless_an_expression_says_so(tmp_path):
    for name in ("a-1", "a-2", "b-1", "c-1"):
        put(tmp_path, f"images/{name}.nii.gz")
        put(tmp_path, f"labels/{name}.nii.gz")
    count = lambda sections: len({item["patient"] for items in sections.values() for item in items})  # noqa: E731
    assert count(made(tmp_path)) == 4
    assert count(made(tmp_path, "--patient", r"(\w)-\d")) == 3


def test_label_map_belongs_to_the_longest_name(tmp_path):
    for name in ("images/p.nii.gz", "images/p_1.nii.gz", "labels/p_seg.nii.gz", "labels/p_1_seg.nii.gz"):
        put(tmp_path, name)
    items = [item for section in made(tmp_path).values() for item in section]
    assert {item["image"][7:-7]: item["label"][7:-7] for item in items} == {"p": "p_seg", "p_1": "p_1_seg"}


BAD = {
    "two labels": (["labels/1000001_2_0.nii.gz"], [], "are label maps|is a label map of 1000001_2_0.nii.gz; keep one"),
    "no folder": ([], ["--labels", "nowhere"], "nowhere: not a folder; set images and labels to folders in DATA"),
    "shares": ([], ["--validation", "0.6", "--test", "0.4"], "give shares whose sum is below 1"),
    "no group": ([], ["--patient", r"\d+_2_0"], "give a regular expression with one group"),
    "no expression": ([], ["--patient", "("], "give a regular expression with one group"),
    "no pair": (["other/x.nii.gz"], ["--labels", "other"], "no image in images has a label map in other"),
    "few": ([], ["--validation", "0.5", "--test", "0.49"], "10 patients are too few to split"),
}


@pytest.mark.parametrize(("files", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(data, capsys, files, options, message):
    for name in files:
        put(data, name)
    with pytest.raises(SystemExit) as error:
        main([str(data), *options])
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (data / "dataset_0.json").exists()
