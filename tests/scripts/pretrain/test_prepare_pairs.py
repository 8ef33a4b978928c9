import json

import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data.datalist import load_datalist
from scripts.pretrain.contrasts import read_image
from scripts.pretrain.prepare_pairs import main, prepare_pairs
from tests.scripts.pretrain.open_data import body, save


@pytest.fixture
def folders(tmp_path):
    """Ten subjects, one of them scanned twice, with cleaned labels."""
    for index in range(11):
        case = f"{100 + index % 10}_{2 + index // 10}_0"
        save(np.stack([body(index + k) for k in range(0, 400, 100)], axis=-1), tmp_path / "images" / f"{case}.nii.gz")
        save((body() > 300).astype(np.uint8), tmp_path / "labels" / f"{case}_cleaned.nii.gz")
    (tmp_path / "images" / "100_2_0.json").write_text("{}")
    return tmp_path / "images", tmp_path / "labels"


def sections(path):
    content = json.loads(path.read_text())
    return {name: {item["patient"] for item in content[name]} for name in ("training", "validation", "test")}


def test_pairs_make_a_data_set_that_a_training_takes(folders, tmp_path):
    path = prepare_pairs(*folders, tmp_path / "out", validation=2, test=3)
    found = load_datalist(path.parent, num_classes=73, read_image=read_image)
    assert sum(map(len, found.values())) == 11
    subjects = sections(path)
    assert [len(subjects[name]) for name in ("training", "validation", "test")] == [5, 2, 3]
    assert not subjects["training"] & (subjects["validation"] | subjects["test"])


def test_split_follows_the_seed_and_not_the_order(folders, tmp_path):
    one, same, other = (
        sections(prepare_pairs(*folders, tmp_path / name, validation=3, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == same != other


def test_more_validation_keeps_what_was_validation(folders, tmp_path):
    few, more = (sections(prepare_pairs(*folders, tmp_path / "out", validation=n)) for n in (2, 4))
    assert few["validation"] < more["validation"]


def test_what_lacks_the_other_is_left_out_with_a_warning(folders, tmp_path, caplog):
    images, labels = folders
    (images / "103_2_0.nii.gz").unlink()
    (labels / "104_2_0_cleaned.nii.gz").unlink()
    subjects = sections(prepare_pairs(images, labels, tmp_path / "out", validation=1))
    assert "left out 1 images without the other: 104_2_0" in caplog.text
    assert "left out 1 label maps without the other: 103_2_0" in caplog.text
    assert not set().union(*subjects.values()) & {"103", "104"}


def test_two_label_maps_of_one_image_are_refused(folders, tmp_path):
    (folders[1] / "100_2_0.nii.gz").touch()
    with pytest.raises(
        InputError, match=r"keep one of each\n100_2_0.nii.gz, 100_2_0_cleaned.nii.gz: label maps of one"
    ):
        prepare_pairs(*folders, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none", "labels", "out"], "none: not a folder"),
        (["images", "none", "out"], "none: not a folder"),
        (["images", "empty", "out"], "empty: no label map is named like an image of "),
        (["images", "labels", "out"], "10 subjects for 50 of validation, 0 of test and some of training; lower"),
        (["images", "labels", "out", "--validation", "-1"], "validation is -1 and test 0: give 0 or more subjects"),
    ],
)
def test_bad_arguments_end_with_2_and_nothing_is_written(folders, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / word) for word in words[:3]] + words[3:])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
