import re

import pytest

from scripts.common.errors import InputError
from scripts.pretrain.open_subjects import find_subjects, label_of, read_splits, with_splits
from tests.scripts.pretrain.open_data import map_subject, masks_subject


@pytest.fixture
def data_set(tmp_path):
    """Two subjects, a folder that is none, and their splits."""
    masks_subject(tmp_path / "set" / "s1")
    masks_subject(tmp_path / "set" / "s2", image="mri", seed=1)
    (tmp_path / "set" / "docs").mkdir()
    (tmp_path / "set" / "meta.csv").write_text("\ufeffimage_id;age;split\ns1;50;train\ns2;60;val\ns9;1;test\n")
    return tmp_path / "set"


def test_subjects_are_folders_with_an_image(data_set):
    subjects, others = find_subjects([data_set])
    assert [(s.case, s.image.name, s.split) for s in subjects] == [
        ("s1", "ct.nii.gz", "training"),
        ("s2", "mri.nii.gz", "validation"),
    ]
    assert others == [str(data_set / "docs")]


def test_a_subject_itself_may_be_given_and_equal_names_are_told_apart(data_set, tmp_path):
    map_subject(tmp_path / "other" / "s1")
    subjects, _ = find_subjects([data_set, tmp_path / "other" / "s1"])
    assert [s.case for s in subjects] == ["set_s1", "s2", "other_s1"]
    assert [s.split for s in with_splits(subjects)] == ["training", "validation", "training"]


@pytest.mark.parametrize(("count", "validation"), [(1, 1), (2, 1), (10, 2), (11, 2)])
def test_without_splits_the_last_fifth_is_validation(tmp_path, count, validation):
    for index in range(count):
        save_image(tmp_path / f"s{index:02d}")
    splits = [s.split for s in with_splits(find_subjects([tmp_path])[0])]
    assert splits == ["training"] * (count - validation) + ["validation"] * validation


def save_image(folder):
    folder.mkdir()
    (folder / "ct.nii.gz").touch()


def test_label_is_a_folder_of_masks_or_the_file_of_a_pattern(tmp_path):
    one, other = masks_subject(tmp_path / "a"), map_subject(tmp_path / "b")
    assert label_of(one, "label*") == (one / "segmentations", None)
    assert label_of(other, "label*") == (other / "label.nii.gz", other / "names.json")
    assert label_of(other, "*")[0] == other / "label.nii.gz", "the image is no label"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "label.nii.gz").unlink(), "no label files named label*"),
        (
            lambda f: (f / "label2.nii.gz").touch(),
            "2 label files named label* (label.nii.gz, label2.nii.gz); see --label",
        ),
        (lambda f: (f / "names.json").unlink(), "no JSON files of names"),
        (lambda f: (f / "b.json").touch(), "2 JSON files of names (b.json, names.json)"),
    ],
)
def test_subject_without_one_label_is_refused(tmp_path, change, message):
    folder = map_subject(tmp_path / "s")
    change(folder)
    with pytest.raises(InputError, match=re.escape(f"s: has neither a folder segmentations nor one label: {message}")):
        label_of(folder, "label*")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the columns image_id and split"),
        ("image_id;age\ns1;3\n", "needs the columns image_id and split"),
        ("image_id;split\ns1;dev\n", "has the splits dev; give train, val or test"),
        ("image_id;split\ns1\n", "has the splits None"),
        ("image_id;split\ns2;train\n", "has no split of s1; add their rows"),
        (b"\xff\xfe\x00", "cannot be read"),
        ('image_id;split\n"s1;train\n', "cannot be read"),
    ],
)
def test_bad_table_of_splits_is_refused(tmp_path, text, message):
    save_image(tmp_path / "s1")
    (tmp_path / "meta.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"meta\.csv: {message}"):
        find_subjects([tmp_path])


def test_table_with_commas_is_read(tmp_path):
    (tmp_path / "meta.csv").write_text("image_id,split\na,test\n")
    assert read_splits(tmp_path / "meta.csv") == {"a": "test"}
    assert read_splits(tmp_path / "none.csv") == {}


@pytest.mark.parametrize("name", ["none", "file", "empty"])
def test_folder_without_subjects_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty" / "s1").mkdir(parents=True)
    (tmp_path / "empty" / "s1" / "scan.nii.gz").touch()
    with pytest.raises(InputError, match=r"(none|file): not a folder; give|empty: holds no subjects, such as s0000/ct"):
        find_subjects([tmp_path / name])
