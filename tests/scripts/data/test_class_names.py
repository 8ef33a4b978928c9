import json

import pytest

from scripts.common.errors import InputError
from scripts.data.class_names import dataset_classes, read_class_names


def test_names_are_those_of_the_datalist_without_the_background(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"labels": {"0": "background", "6": "liver", "2": "right kidney"}}))
    assert dataset_classes(tmp_path, "list.json") == {2: "right kidney", 6: "liver"}
    (tmp_path / "labels.json").write_text('{"1": "cell"}')
    assert read_class_names(tmp_path) == {1: "cell"}
    assert read_class_names(tmp_path / "absent.json") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "add the names of the classes"),
        ('{"labels": {"0": "background"}}', "add the names of the classes"),
        ('{"labels": {"one": "liver"}}', "give the names of classes as"),
        ('{"labels": {"1": "liver", "2": "liver"}}', "twice"),
        ("[", "give the names of classes as"),
    ],
)
def test_missing_or_wrong_names_are_refused(tmp_path, content, message):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(InputError, match=message):
        dataset_classes(tmp_path, "list.json")
