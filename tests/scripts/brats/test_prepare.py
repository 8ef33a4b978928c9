import json
import re
import zlib
from collections import Counter
from functools import partial

import nibabel as nib
import numpy as np
import pytest

from scripts.brats import prepare as prepare_module
from scripts.brats.inputs import check_image
from scripts.brats.prepare import main, prepare_brats
from scripts.brats.regions import LABEL_SETS
from scripts.common.errors import InputError
from scripts.data.datalist import load_datalist
from scripts.data.folds import assign_folds

NEW = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")
OLD = ("_t1", "_t1ce", "_t2", "_flair", "_seg")


def write_case(root, name, ends=NEW, suffix=".nii.gz"):
    (root / name).mkdir(parents=True, exist_ok=True)
    for end in ends:
        (root / name / f"{name}{end}{suffix}").touch()


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def longitudinal(tmp_path):
    """Twelve patients, the first four with three time points each."""
    for patient in range(12):
        for time_point in range(3 if patient < 4 else 1):
            write_case(tmp_path, f"BraTS-GLI-{patient:05d}-{time_point:03d}")
    return tmp_path


def test_layout_of_2023_becomes_channels_in_order(tmp_path):
    for number in range(5):
        write_case(tmp_path, f"BraTS-GLI-0000{number}-000")
    write_case(tmp_path, "BraTS-GLI-00005-000", NEW[:4])
    content = read(prepare_brats(tmp_path))
    name = "BraTS-GLI-00003-000/BraTS-GLI-00003-000"
    assert content["training"][3] == {
        "image": [f"{name}-{kind}.nii.gz" for kind in ("t1n", "t1c", "t2w", "t2f")],
        "label": f"{name}-seg.nii.gz",
        "patient": "BraTS-GLI-00003",
        "fold": content["training"][3]["fold"],
    }
    assert [item["patient"] for item in content["test"]] == ["BraTS-GLI-00005"]
    assert "label" not in content["test"][0]


def test_log_counts_all_patients(tmp_path, caplog):
    for name in ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00001-000"):
        write_case(tmp_path, name)
    write_case(tmp_path, "BraTS-GLI-00002-000", NEW[:4])
    with caplog.at_level("INFO"):
        prepare_brats(tmp_path, folds=2)
    assert caplog.messages == [f"{tmp_path}: 4 cases of 3 patients, 1 without a label"]


def test_layout_of_2021_becomes_channels_in_the_same_order(tmp_path):
    for number in range(5):
        write_case(tmp_path, f"BraTS2021_0000{number}", OLD, suffix=".nii")
    first = read(prepare_brats(tmp_path))["training"][0]
    name = "BraTS2021_00000/BraTS2021_00000"
    assert first["image"] == [f"{name}_{kind}.nii" for kind in ("t1", "t1ce", "t2", "flair")]
    assert first["patient"] == "BraTS2021_00000"


def test_time_points_of_a_patient_share_a_fold(longitudinal):
    training = read(prepare_brats(longitudinal))["training"]
    assert len(training) == 20
    folds = {item["patient"]: set() for item in training}
    for item in training:
        folds[item["patient"]].add(item["fold"])
    assert all(len(found) == 1 for found in folds.values())
    assert set.union(*folds.values()) == {0, 1, 2, 3, 4}
    assert max(Counter(min(found) for found in folds.values()).values()) <= 3


def test_folds_depend_on_the_seed_alone():
    names = [f"p{n}" for n in range(20)]
    assert assign_folds(names, seed=1) == assign_folds([*reversed(names), "p0"], seed=1)
    assert assign_folds(names, seed=1) != assign_folds(names, seed=2)


def test_datalist_elsewhere_is_read_with_its_data(tmp_path):
    for number in range(5):
        write_case(tmp_path / "data", f"BraTS-GLI-0000{number}-000")
    path = prepare_brats(tmp_path / "data", tmp_path / "lists" / "mine.json")
    lists = load_datalist(tmp_path / "data", datalist_file=str(path), images_per_case=4, fold=2, check=False)
    assert [len(lists[name]) for name in ("training", "validation", "test")] == [4, 1, 0]
    case = lists["validation"][0]["case"]
    assert lists["validation"][0]["image"][3] == str(tmp_path / "data" / case / f"{case}-t2f.nii.gz")


def test_missing_and_duplicate_files_are_all_named(tmp_path):
    for number in range(5):
        write_case(tmp_path, f"BraTS-GLI-0000{number}-000")
    (tmp_path / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t2f.nii.gz").unlink()
    (tmp_path / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t1n.nii.gz").unlink()
    (tmp_path / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-t1c.nii").touch()
    (tmp_path / "BraTS-GLI-00003-000" / "BraTS-GLI-00003-000_seg.nii").touch()
    write_case(tmp_path / "again", "BraTS-GLI-00004-000")
    with pytest.raises(InputError, match="4 problems; add, remove or rename") as caught:
        prepare_brats(tmp_path)
    root = str(tmp_path)
    assert str(caught.value).replace(root, "ROOT").splitlines()[1:] == [
        "ROOT/BraTS-GLI-00001-000: t1n, t2f missing beside BraTS-GLI-00001-000-t1c.nii.gz: give t1n, t1c, t2w, t2f.",
        "ROOT/BraTS-GLI-00002-000: 2 files for t1c (BraTS-GLI-00002-000-t1c.nii, "
        "BraTS-GLI-00002-000-t1c.nii.gz): keep one.",
        "ROOT/BraTS-GLI-00003-000/BraTS-GLI-00003-000-seg.nii.gz, "
        "ROOT/BraTS-GLI-00003-000/BraTS-GLI-00003-000_seg.nii: 2 labels of one case: keep one.",
        "ROOT/BraTS-GLI-00004-000, ROOT/again/BraTS-GLI-00004-000: 2 cases named BraTS-GLI-00004-000: keep one.",
    ]
    assert not (tmp_path / "dataset_0.json").exists()


def test_two_names_of_one_sequence_are_duplicates(tmp_path):
    write_case(tmp_path, "a", (*NEW, "_flair"))
    with pytest.raises(InputError, match=r"2 files for t2f \(a-t2f.nii.gz, a_flair.nii.gz\): keep one"):
        prepare_brats(tmp_path)


def test_another_datalist_is_not_replaced_but_the_same_is(longitudinal):
    path = prepare_brats(longitudinal)
    assert prepare_brats(longitudinal) == path
    with pytest.raises(InputError, match="lists other cases or folds than these; remove it, or set out to"):
        prepare_brats(longitudinal, seed=1)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (13, "folds is 13 for 12 patients with labels: give 2 or more, one patient each."),
        (1, "folds is 1 for 12 patients with labels: give 2 or more, one patient each."),
    ],
)
def test_impossible_number_of_folds_ends_the_command_line(longitudinal, capsys, folds, message):
    with pytest.raises(SystemExit) as caught:
        main([str(longitudinal), "--folds", str(folds)])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"prepare_brats: error: {message}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1: give 0 or more"),
        ({"out": "list.txt"}, "list.txt: not a name for a datalist; give the path of a file that ends in .json"),
        ({"out": ""}, ": not a name for a datalist; give the path of a file that ends in .json"),
        ({"out": "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz"}, "t1n.nii.gz: not a name for a datalist"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(longitudinal, options, message):
    if "out" in options:
        options = {"out": longitudinal / options["out"]}
    before = sorted(longitudinal.rglob("*"))
    with pytest.raises(InputError, match=re.escape(message)):
        prepare_brats(longitudinal, **options)
    assert sorted(longitudinal.rglob("*")) == before


def test_cases_without_any_label_are_refused(tmp_path):
    for number in range(5):
        write_case(tmp_path, f"BraTS-GLI-0000{number}-000", NEW[:4])
    with pytest.raises(InputError, match=r"none of 5 cases has a label, such as BraTS-GLI-00000-000-seg\.nii\.gz; add"):
        prepare_brats(tmp_path)


def test_images_that_are_in_no_case_are_named(longitudinal, caplog):
    write_case(longitudinal, "label_alone", NEW[4:])
    write_case(longitudinal, "other", ("-adc", "-t1gd"))
    prepare_brats(longitudinal)
    first = longitudinal / "label_alone" / "label_alone-seg.nii.gz"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{longitudinal}: left out 3 images that are in no case, such as {first}"
    ]


def test_interrupted_command_line_ends_with_130_and_one_line(longitudinal, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "find_cases", interrupt)
    with pytest.raises(SystemExit) as caught:
        main([str(longitudinal)])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "prepare_brats: stopped, nothing was written\n"


@pytest.mark.parametrize("make", ["nothing", "file", "folder of other files"])
def test_source_without_cases_is_refused(tmp_path, make):
    source = tmp_path / "in"
    if make == "file":
        source.touch()
    elif make == "folder of other files":
        source.mkdir()
        (source / "scan.nii.gz").touch()
    with pytest.raises(InputError, match=r"in: (not a folder; give|no cases found, such as BraTS-GLI-00000-000/BraTS)"):
        prepare_brats(source)


# The datalist in training


def write_volumes(item_root, name, *, label_value=3, affine=None):
    item_root.mkdir(parents=True, exist_ok=True)
    for end in NEW:
        array = np.zeros((4, 5, 6), np.int16)
        array[1:3] = label_value if end == "-seg" else zlib.crc32(f"{name}{end}".encode()) % 1000 + 1
        affines = {"-t2w": affine} if affine is not None else {}
        nib.save(nib.Nifti1Image(array, affines.get(end, np.eye(4))), item_root / f"{name}{end}.nii.gz")


@pytest.fixture
def two_folds(tmp_path):
    for number in range(2):
        name = f"BraTS-GLI-0000{number}-000"
        write_volumes(tmp_path / name, name)
    prepare_brats(tmp_path, folds=2)
    return tmp_path


def load(root, *, resample=False, **options):
    options |= {"label_sets": LABEL_SETS, "check_image": partial(check_image, resample=resample)}
    return load_datalist(root, images_per_case=4, fold=0, **options)


def test_fold_validates_and_cases_are_named_after_their_folder(two_folds):
    lists = load(two_folds)
    cases = {name: [item["case"] for item in lists[name]] for name in lists}
    assert {*cases["training"], *cases["validation"]} == {"BraTS-GLI-00000-000", "BraTS-GLI-00001-000"}
    assert len(cases["validation"]) == 1
    assert "fold" not in lists["validation"][0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, r"label values 5 are outside 0, 1, 2, 3, and 5 are outside 0, 1, 2, 4"),
        (1.5, r"label values 1.5 are not whole numbers"),
    ],
)
def test_label_outside_both_numberings_is_found_before_training(two_folds, value, message):
    name = "BraTS-GLI-00001-000"
    path = two_folds / name / f"{name}-seg.nii.gz"
    nib.save(nib.Nifti1Image(np.full((4, 5, 6), value, np.float32), np.eye(4)), path)
    with pytest.raises(InputError, match=rf"{name}-seg.nii.gz: {message}"):
        load(two_folds)


def test_label_with_3_and_4_is_found_before_training(two_folds):
    name = "BraTS-GLI-00001-000"
    array = np.zeros((4, 5, 6), np.uint8)
    array[0], array[1] = 3, 4
    nib.save(nib.Nifti1Image(array, np.eye(4)), two_folds / name / f"{name}-seg.nii.gz")
    with pytest.raises(InputError, match=r"label values 4 are outside 0, 1, 2, 3, and 3 are outside 0, 1, 2, 4"):
        load(two_folds)


def test_sequences_on_two_grids_are_found_before_training_unless_resampled(two_folds):
    name = "BraTS-GLI-00001-000"
    write_volumes(two_folds / name, name, affine=np.diag([1, 1, 2, 1.0]))
    with pytest.raises(InputError, match=r"-t1c.nii.gz: not all sequences lie on its grid: t2w has spacing 1 x 1 x 2"):
        load(two_folds)
    assert len(load(two_folds, resample="true")["training"]) == 1


def rewritten(root, change):
    path = root / "dataset_0.json"
    content = read(path)
    change(content["training"], content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, _: t[0].pop("fold"), r"training\[0\]: fold is None"),
        (lambda t, _: t[0].update(fold="1"), r"training\[0\]: fold is '1'"),
        (lambda t, _: [item.update(fold=3) for item in t], r"fold is 0: give one of 3"),
        (lambda t, _: t[1].update(patient=t[0]["patient"]), r"patient BraTS-GLI-00000: in the folds \[0, 1\]"),
        (lambda t, c: c.update(validation=[t.pop()]), r"validation: 1 cases beside the folds"),
        (lambda t, _: t[0].update(image=t[0]["image"][:3]), r"image is a list of 3, need a list of 4 paths"),
        (lambda t, _: t[0].update(image=t[0]["image"][0]), r"image is 'BraTS.*', need a list of 4 paths"),
        (lambda t, _: t[0]["image"].reverse(), r"-t2f.nii.gz: is t2f by its name, where t1n belongs"),
        (lambda t, _: t[0]["image"].__setitem__(3, t[1]["image"][3]), r"-t2f.nii.gz: in training and validation"),
    ],
)
def test_bad_datalist_is_refused(two_folds, change, message):
    rewritten(two_folds, change)
    with pytest.raises(InputError, match=message):
        load(two_folds)


def test_datalist_with_its_own_validation_list_is_not_split(two_folds):
    def split(training, content):
        content["validation"] = [training.pop()]
        for item in (*training, *content["validation"]):
            item.pop("fold")

    rewritten(two_folds, split)
    lists = load(two_folds)
    assert [item["case"] for item in lists["validation"]] == ["BraTS-GLI-00001-000"]


def test_datalist_of_test_cases_alone_needs_no_folds(two_folds):
    rewritten(two_folds, lambda training, content: content.update(test=content.pop("training")))
    assert [len(items) for items in load(two_folds, required=("test",)).values()] == [0, 0, 2]


def test_patient_in_training_and_in_a_validation_list_is_leakage(two_folds):
    def split(training, content):
        content["validation"] = [training.pop()]
        for item in (*training, *content["validation"]):
            item.pop("fold")
            item["patient"] = "p1"

    rewritten(two_folds, split)
    with pytest.raises(InputError, match="patient p1: in training and validation"):
        load(two_folds)


def test_missing_datalist_is_named_with_the_fix(tmp_path):
    with pytest.raises(InputError, match=r"dataset_0.json: no such datalist; images in several files need one, see"):
        load(tmp_path)


def test_command_line_writes_the_datalist_and_logs_its_path(two_folds, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert main([str(two_folds), "--folds", "2", "--out", str(tmp_path / "lists" / "mine.json")]) == 0
    assert len(read(tmp_path / "lists" / "mine.json")["training"]) == 2
    assert caplog.records[-1].message == f"wrote {tmp_path / 'lists' / 'mine.json'}"
