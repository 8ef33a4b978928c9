import csv
import re

import pytest

from scripts.common.errors import InputError
from scripts.common.organs import IDS_OF_NAMES, ORGANS
from scripts.solf.renaming import Renaming, Sources, source_counts
from tests.conftest import SHARED_DATA


def rows_of(folder):
    with (folder / "label_names.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"] or row["id"]: row for row in csv.DictReader(file)}


def test_every_known_name_is_found_whatever_case_and_order_of_words():
    renaming = Renaming()
    assert {name: renaming.id_of(name) for name in IDS_OF_NAMES} == IDS_OF_NAMES
    assert renaming.id_of("Right Kidney") == 2
    assert renaming.id_of("kidney") == 255
    assert renaming.organs == ORGANS


def test_ids_without_a_name_are_ignored_and_zero_stays_background(json_file):
    values = Renaming(label_names=json_file({"0": "background", "300": "spleen", "9": "skull"})).values
    assert values.shape == (65536,)
    assert (values[0], values[300], values[9], values[10], values[65535]) == (0, 1, 255, 255, 255)


def test_merged_names_are_logged(json_file, caplog):
    ribs = {str(n): f"rib_left_{n}" for n in range(1, 13)} | {str(12 + n): f"rib_right_{n}" for n in range(1, 13)}
    path = json_file(ribs | {"30": "spleen"})
    Renaming(label_names=path)
    assert caplog.messages[0].startswith(f"{path}: 24 become one label, rib: rib_left_1, rib_left_2,")
    assert len(caplog.messages) == 1


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is absent")
def test_every_name_of_a_real_table_is_an_organ_or_named_in_the_log(caplog):
    renaming = Renaming(label_names=SHARED_DATA / "ct_torso" / "totalsegmentator_ct_classes.json")
    ignored, *merged = caplog.messages
    others = [name for name in renaming.names.values() if name not in IDS_OF_NAMES]
    assert ignored.endswith(f": {len(others)} of {len(renaming.names)} become ignored (255): {', '.join(others)}")
    assert {re.search("one label, ([a-zA-Z]+)", message)[1] for message in merged} == {"rib", "intestine"}


def test_table_names_ids_names_and_reasons(tmp_path, json_file, caplog):
    renaming = Renaming(label_names=json_file({"1": "spleen", "2": "colon", "3": "small_bowel", "4": "skull"}))
    sources = Sources(renaming)
    sources.add(source_counts({1: 10, 2: 20, 4: 5}, {}))
    sources.add(source_counts({2: 1, 9: 3}, {}))
    sources.add(source_counts({}, {"liver": 7, "7": 2}, overlap=6))
    sources.add("")
    caplog.clear()
    sources.write(tmp_path)
    rows = rows_of(tmp_path)
    assert {name: (row["id"], row["files"], row["voxels"], row["becomes"]) for name, row in rows.items()} == {
        "spleen": ("1", "1", "10", "1"),
        "colon": ("2", "2", "21", "18"),
        "small_bowel": ("3", "0", "0", "18"),
        "skull": ("4", "1", "5", "255"),
        "9": ("9", "1", "3", "255"),
        "7": ("", "1", "2", "255"),
        "liver": ("", "1", "7", "5"),
    }
    assert rows["9"]["reason"] == "label_names has no such id"
    assert rows["skull"]["reason"] == rows["7"]["reason"] == "the label table has no such name"
    assert rows["colon"]["reason"] == "one of 2 that become this organ"
    assert [message.split(";")[0] for message in caplog.messages] == [
        "10 voxels of 3 labels are ignored (255): they are not measured and stay ignored",
        "6 voxels in 1 cases lie in several organs",
    ]


def test_table_of_an_earlier_run_is_removed_if_nothing_was_renamed(tmp_path, caplog):
    (tmp_path / "label_names.csv").touch()
    sources = Sources(Renaming())
    sources.add("")
    sources.write(tmp_path)
    assert not list(tmp_path.iterdir())
    assert caplog.messages == []


def test_names_that_no_label_has_are_refused():
    with pytest.raises(InputError, match=r"^/x: none of its 2 names, such as 'a', is one of the label table's;"):
        Renaming().ids_of(["a", "b"], "/x")
