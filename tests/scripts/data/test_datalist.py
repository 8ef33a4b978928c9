import json
import re
from pathlib import Path

import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data.datalist import load_datalist
from tests.scripts.io.volume_files import write_case, write_volume


def write_plain_folders(root, images, labels):
    for name in images:
        write_volume(root / "imagesTr" / name, value=40)
    for name in labels:
        write_volume(root / "labelsTr" / name, value=1, dtype=np.uint8)


def write_json(root, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "dataset_0.json").write_text(text)


def entry(number):
    return {"image": f"imagesTr/img{number:04d}.nii.gz", "label": f"labelsTr/label{number:04d}.nii.gz"}


def cases(items):
    return [item["case"] for item in items]


def load_unchecked(root, **options):
    return load_datalist(root, num_classes=14, check=False, **options)


def test_json_gives_absolute_paths_case_names_and_other_text_fields(tmp_path):
    write_json(
        tmp_path,
        {
            "name": "BTCV",
            "labels": {"0": "background"},
            "training": [{**entry(1), "site": "A", "fold": 0, "case": "../../evil"}],
            "validation": [entry(35)],
            "test": ["./imagesTs/img0061.nii.gz", {"image": "imagesTs/img0062.nii.gz"}],
        },
    )
    lists = load_unchecked(tmp_path)
    image, label = str(tmp_path / "imagesTr/img0001.nii.gz"), str(tmp_path / "labelsTr/label0001.nii.gz")
    assert lists["training"] == [{"image": image, "label": label, "site": "A", "case": "img0001"}]
    assert cases(lists["validation"]) == ["img0035"]
    assert lists["test"] == [
        {"image": str(tmp_path / f"imagesTs/{case}.nii.gz"), "case": case} for case in ("img0061", "img0062")
    ]


def test_empty_sections_are_lists(tmp_path):
    write_json(tmp_path, {"test": ["imagesTs/a.nii.gz"]})
    lists = load_unchecked(tmp_path, required=("test",))
    assert lists["training"] == lists["validation"] == []


def test_relative_dataset_dir_gives_absolute_paths(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_json(tmp_path / "data", {"training": [entry(1)], "validation": [entry(2)]})
    assert load_unchecked("../data")["training"][0]["image"] == str(tmp_path / "data" / entry(1)["image"])


def test_absolute_datalist_file_lists_paths_of_dataset_dir(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "data").mkdir()
    write_json(tmp_path / "lists", {"training": [entry(1)], "validation": [entry(2)]})
    lists = load_unchecked(tmp_path / "data", datalist_file=str(tmp_path / "lists/dataset_0.json"))
    assert lists["training"][0]["image"] == str(tmp_path / "data" / entry(1)["image"])


def test_absolute_paths_inside_are_accepted_also_through_a_linked_dataset_dir(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real = {key: str(tmp_path / "real" / value) for key, value in entry(1).items()}
    linked = {key: str(tmp_path / "link" / value) for key, value in entry(2).items()}
    write_json(tmp_path / "real", {"training": [real], "validation": [linked]})
    lists = load_unchecked(tmp_path / "link")
    assert lists["training"][0]["image"] == str(tmp_path / "link" / entry(1)["image"])
    assert cases(lists["validation"]) == ["img0002"]


def test_data_linked_into_dataset_dir_is_allowed(tmp_path):
    write_case(tmp_path / "store")
    write_case(tmp_path / "store", image="imagesTr/img0002.nii.gz", label="labelsTr/label0002.nii.gz")
    (tmp_path / "data").mkdir()
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / folder).symlink_to(tmp_path / "store" / folder)
    write_json(tmp_path / "data", {"training": [entry(1)], "validation": [entry(2)]})
    assert cases(load_datalist(tmp_path / "data", num_classes=14)["training"]) == ["img0001"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON (Expecting property name enclosed in double quotes"),
        ("[" * 100_000, "not readable as JSON (maximum recursion depth exceeded"),
        ("[]", "holds a list, need an object with training and validation"),
        ({"training": "x"}, "1 problem; correct these entries\ntraining: is 'x', need a list"),
        ({"training": None}, "training: is None, need a list"),
        ({"training": {}}, "training: is a dict, need a list"),
        ({"training": ["a.nii.gz"]}, "training[0]: is 'a.nii.gz', need an object with image and label"),
        ({"test": [7]}, "test[0]: is 7, need an object with image and label"),
        ({"training": [{"image": "a.nii.gz"}]}, "training[0]: label is None, need one path as text"),
        ({"training": [{"image": ["a.nii.gz"]}]}, "training[0]: image is a list, need one path as text"),
        ({"test": [""]}, "test[0]: image is '', need one path as text"),
        ({"test": ["a\0.nii.gz"]}, "test[0]: image is 'a\\x00.nii.gz', need one path as text"),
        ({"test": ["a\n.nii.gz"]}, "test[0]: image is 'a\\n.nii.gz', need one path as text"),
        ({"test": ["../a.nii.gz"]}, "test[0]: image '../a.nii.gz' is outside {root}; use a path inside it"),
        ({"test": ["x/../../a.nii.gz"]}, "test[0]: image 'x/../../a.nii.gz' is outside {root}"),
        ({"test": ["/etc/a.nii.gz"]}, "test[0]: image '/etc/a.nii.gz' is outside {root}"),
        ({"test": ["{root}-2/a.nii.gz"]}, "test[0]: image '{root}-2/a.nii.gz' is outside {root}"),
        ({"test": ["."]}, "test[0]: image '.' is not a .nii or .nii.gz file; convert it"),
        ({"test": ["a.mha"]}, "test[0]: image 'a.mha' is not a .nii or .nii.gz file; convert it"),
        ({"test": ["...nii"]}, "test[0]: image '...nii' is not a .nii or .nii.gz file; convert it"),
        ({"test": [1, 2], "training": [3]}, "dataset_0.json: 3 problems; correct these entries\n"),
        ({"validation": [entry(1)]}, 'dataset_0.json: no training cases; list some under "training"'),
        ({"training": [entry(1)]}, 'dataset_0.json: no validation cases; list some under "validation"'),
        (
            {"training": [entry(1), entry(1)], "validation": [entry(2)]},
            "training cases must not be used to measure it; list each file once, or set allow_overlap to true\n"
            "{root}/imagesTr/img0001.nii.gz: 2 times in training",
        ),
    ],
)
def test_bad_datalist_is_refused(tmp_path, content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    write_json(tmp_path, text.replace("{root}", str(tmp_path)))
    with pytest.raises(InputError, match=re.escape(message.replace("{root}", str(tmp_path)))):
        load_unchecked(tmp_path)


@pytest.mark.parametrize("other", ["validation", "test"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_file_in_training_and_elsewhere_is_leakage(tmp_path, other, key):
    lists = {"training": [entry(1)], "validation": [entry(2)], "test": [entry(3)]}
    lists[other][0][key] = f"x/../{entry(1)[key]}"
    write_json(tmp_path, lists)
    shared = tmp_path / entry(1)[key]
    with pytest.raises(InputError, match=re.escape(f"{shared}: in training and {other}")):
        load_unchecked(tmp_path)


def test_leakage_is_found_through_links(tmp_path):
    case = write_case(tmp_path)
    Path(tmp_path / "imagesTr/img0002.nii.gz").symlink_to(case["image"])
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(2)]})
    with pytest.raises(InputError, match="in training and validation"):
        load_unchecked(tmp_path)


def test_validation_and_test_may_share_cases(tmp_path):
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(2)], "test": [entry(2)]})
    lists = load_unchecked(tmp_path)
    assert cases(lists["validation"]) == cases(lists["test"]) == ["img0002"]


def test_repeated_names_get_their_folders_and_stay_unique(tmp_path):
    images = ["a/scan.nii.gz", "b/scan.nii.gz", "other.nii.gz", "a_scan.nii.gz", "a/scan.nii"]
    test = [{"image": name} for name in images]
    write_json(tmp_path, {"test": test})
    lists = load_unchecked(tmp_path, required=("test",))
    assert cases(lists["test"]) == ["a_scan", "b_scan", "other", "a_scan_2", "a_scan_3"]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("img{:04d}.nii.gz", "label{:04d}.nii.gz"),
        ("case{:02d}_0000.nii.gz", "case{:02d}.nii.gz"),
        ("liver_{}.nii", "liver_{}.nii.gz"),
        ("PATIENT{}.NII.GZ", "PATIENT{}.nii.gz"),
    ],
)
def test_plain_folders_match_names_and_validate_on_the_last_fifth(tmp_path, image, label, caplog):
    write_plain_folders(tmp_path, [image.format(n) for n in range(1, 10)], [label.format(n) for n in range(1, 10)])
    (tmp_path / "imagesTr" / "._img0001.nii.gz").touch()
    (tmp_path / "imagesTr" / "notes.txt").touch()
    lists = load_unchecked(tmp_path)
    assert [len(lists[name]) for name in lists] == [8, 1, 0]
    assert lists["validation"][0]["image"].endswith(image.format(9))
    for item in lists["training"]:
        number = int(re.search(r"\d+", item["case"])[0])
        assert item["label"] == str(tmp_path / "labelsTr" / label.format(number))
    assert "dataset_0.json: no such file, so the last fifth of imagesTr by name is validation" in caplog.text


def test_plain_folders_of_btcv_validate_on_the_usual_six(tmp_path):
    numbers = [*range(1, 11), *range(21, 41)]
    for folder, name in (("imagesTr", "img"), ("labelsTr", "label")):
        (tmp_path / folder).mkdir()
        for number in numbers:
            (tmp_path / folder / f"{name}{number:04d}.nii.gz").touch()
    assert cases(load_unchecked(tmp_path)["validation"]) == [f"img{n:04d}" for n in range(35, 41)]


def test_plain_test_images_may_lack_labels_unless_the_folder_is_there(tmp_path):
    write_plain_folders(tmp_path, ["a.nii.gz", "b.nii.gz"], ["a.nii.gz", "b.nii.gz"])
    write_volume(tmp_path / "imagesTs/c.nii.gz")
    assert "label" not in load_unchecked(tmp_path)["test"][0]
    (tmp_path / "labelsTs").mkdir()
    with pytest.raises(InputError, match=r"imagesTs/c\.nii\.gz: no label in labelsTs"):
        load_unchecked(tmp_path)
    write_volume(tmp_path / "labelsTs/c.nii.gz")
    assert load_unchecked(tmp_path)["test"][0]["label"] == str(tmp_path / "labelsTs/c.nii.gz")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (["a", "b"], ["a"], "{root}/imagesTr/b.nii.gz: no label in labelsTr"),
        (["a"], ["a", "b"], "{root}/labelsTr/b.nii.gz: no image in imagesTr"),
        (["a_0000", "a_0001"], ["a"], "{root}/imagesTr/a_0001.nii.gz: no label in labelsTr"),
        (["a", "a_0000"], ["a"], "{root}/imagesTr/a_0000.nii.gz: the same case as a.nii.gz"),
        (["a"], ["a"], "{root}: no training cases; "),
        (
            [],
            [],
            "{root}: has neither dataset_0.json nor a folder imagesTr; set dataset_dir to a folder that has one of",
        ),
    ],
)
def test_bad_plain_folders_are_refused(tmp_path, images, labels, message):
    write_plain_folders(tmp_path, [f"{n}.nii.gz" for n in images], [f"{n}.nii.gz" for n in labels])
    with pytest.raises(InputError, match=re.escape(message.replace("{root}", str(tmp_path)))):
        load_unchecked(tmp_path)


def test_missing_dataset_dir_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"/none: not a folder; set dataset_dir to the folder that holds"):
        load_unchecked(tmp_path / "none")


def test_unknown_required_section_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"required lists unknown sections \['train'\]; use some of"):
        load_unchecked(tmp_path, required=("train",))


@pytest.mark.parametrize("num_classes", [None, 1])
def test_check_without_number_of_classes_is_refused(tmp_path, num_classes):
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(2)]})
    with pytest.raises(InputError, match=r"num_classes is [01]; set it to the number of labels"):
        load_datalist(tmp_path, num_classes=num_classes)


def test_check_covers_required_sections_only(tmp_path):
    write_case(tmp_path, image=entry(2)["image"], label=entry(2)["label"])
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(2)]})
    load_datalist(tmp_path, num_classes=14, required=("validation",))
    with pytest.raises(InputError, match=r"img0001\.nii\.gz: no such file"):
        load_datalist(tmp_path, num_classes=14)


@pytest.mark.parametrize("no", [False, "false", "False"])
def test_check_and_overlap_are_switched_by_text_too(tmp_path, no):
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(1)]})
    for yes in (True, "true"):
        load_datalist(tmp_path, check=no, allow_overlap=yes)
    with pytest.raises(InputError, match="in training and validation"):
        load_datalist(tmp_path, check=no, allow_overlap=no)
    with pytest.raises(InputError, match=r"^check_data is 'maybe': give true or false\.$"):
        load_datalist(tmp_path, check="maybe", allow_overlap=True)


def test_patient_in_training_and_validation_is_leakage(tmp_path):
    training, validation = ({**entry(n), "patient": "p1"} for n in (1, 2))
    write_json(tmp_path, {"training": [training], "validation": [validation], "test": [{**entry(3), "patient": "p1"}]})
    with pytest.raises(InputError, match=r"\npatient p1: in training and validation\npatient p1: .* test$"):
        load_unchecked(tmp_path)


def test_fold_of_training_cases_becomes_validation(tmp_path):
    write_json(tmp_path, {"training": [{**entry(n), "fold": n % 2} for n in range(1, 6)]})
    lists = load_unchecked(tmp_path, fold=1)
    assert cases(lists["training"]) == ["img0002", "img0004"]
    assert cases(lists["validation"]) == ["img0001", "img0003", "img0005"]


def several(number, n=2):
    return {**entry(number), "image": [f"imagesTr/p{number}-{name}.nii.gz" for name in "abc"[:n]]}


def test_image_in_several_files_is_a_list_named_after_its_common_beginning(tmp_path):
    write_json(tmp_path, {"training": [several(1)], "validation": [several(2)]})
    lists = load_unchecked(tmp_path, images_per_case=2)
    assert lists["training"][0]["image"] == [str(tmp_path / f"imagesTr/p1-{name}.nii.gz") for name in "ab"]
    assert cases(lists["training"] + lists["validation"]) == ["p1", "p2"]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (entry(1), "training[0]: image is 'imagesTr/img0001.nii.gz', need a list of 2 paths"),
        (several(1, 3), "training[0]: image is a list of 3, need a list of 2 paths"),
        ({**several(1), "image": ["a.nii", 7]}, "training[0]: image is 7, need one path as text"),
    ],
)
def test_other_number_of_files_of_an_image_is_refused(tmp_path, training, message):
    write_json(tmp_path, {"training": [training]})
    with pytest.raises(InputError, match=re.escape(message)):
        load_unchecked(tmp_path, images_per_case=2)


def test_images_in_several_files_need_a_datalist(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(InputError, match=r"dataset_0\.json: no such datalist; images in several files need one"):
        load_unchecked(tmp_path, images_per_case=2)


def test_check_of_the_files_of_an_image_is_used(tmp_path):
    for number in (1, 2):
        write_case(tmp_path, **entry(number))
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(2)]})
    with pytest.raises(InputError, match=r"check of 2 cases: 2 problems; .*\nrefused\nrefused$"):
        load_datalist(tmp_path, num_classes=14, check_image=lambda paths, grids: (["refused"], grids[0]))


def test_ignored_label_is_accepted_in_training_alone(tmp_path):
    for number in (1, 2):
        write_case(tmp_path, **entry(number))
        write_volume(tmp_path / entry(number)["label"], value=255)
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(2)]})
    with pytest.raises(InputError, match=r"1 problem; .*\n.*label0002.nii.gz: label values 255 are outside 0..13$"):
        load_datalist(tmp_path, num_classes=14, ignored_label=255)
