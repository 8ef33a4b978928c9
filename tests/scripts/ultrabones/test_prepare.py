import json

import pytest

from scripts.common.errors import InputError
from scripts.data.datalist import load_datalist
from scripts.ultrabones.prepare import PUBLISHED_POOL, PUBLISHED_TEST, main, prepare_ultrabones

PUBLISHED = [
    "cadaver00-F230837",
    "cadaver01_F231091",
    "02_F231218",
    "03_S231783",
    "04_F231091",
    "05_S232132L",
    "06_S231987",
    "07_S232132R",
    "08_S231989L",
    "09_S231989R",
    "10_S232098L",
    "11_S232110",
    "12_S240174",
    "13_S232110L",
    "14_S240280",
]


def data_set(root, names=PUBLISHED, *, frames=2, flat=False):
    """Empty files in the folders of the published code, or of its README."""
    for name in names:
        record = root / name / ("record01" if flat else "Linear18/record01")
        for frame in range(frames):
            for folder, suffix in (
                ("UltrasoundImages", ""),
                ("Labels" if flat else "Label_partial_gradient", "_label"),
            ):
                (record / folder).mkdir(parents=True, exist_ok=True)
                (record / folder / f"16999{frame}{suffix}.png").touch()
    return root


def prepared(root, **options):
    return json.loads(prepare_ultrabones(root, **options).read_text())


def specimens(cases):
    return {int(case["specimen"].removeprefix("cadaver")[:2]) for case in cases}


@pytest.mark.parametrize("flat", [False, True])
def test_both_published_folders_are_read(tmp_path, flat):
    content = prepared(data_set(tmp_path, flat=flat))
    assert len(content["training"]) + len(content["test"]) == 30
    first = content["training"][0]
    assert first["label"].endswith("Labels/169990_label.png" if flat else "Label_partial_gradient/169990_label.png")
    assert first["image"].endswith("UltrasoundImages/169990.png")


def test_no_donor_is_in_two_folds_nor_in_training_and_test(tmp_path):
    content = prepared(data_set(tmp_path))
    assert specimens(content["test"]) == {2, 5, 7, 8, 9}
    folds = {}
    for case in content["training"]:
        folds.setdefault(case["patient"], set()).add(case["fold"])
    assert all(len(numbers) == 1 for numbers in folds.values())
    assert sorted(n for numbers in folds.values() for n in numbers) == list(range(len(folds)))
    assert folds.keys() == {"F230837", "F231091", "S231783", "S231987", "S232098", "S232110", "S240174", "S240280"}
    assert not folds.keys() & {case["patient"] for case in content["test"]}


def test_datalist_is_read_and_each_fold_leaves_one_donor_out(tmp_path):
    prepared(data_set(tmp_path))
    for fold in range(8):
        sections = load_datalist(tmp_path, fold=fold, check=False, pictures=True)
        assert len({case["patient"] for case in sections["validation"]}) == 1
        assert not {c["patient"] for c in sections["validation"]} & {c["patient"] for c in sections["training"]}
    assert {case["specimen"] for case in load_datalist(tmp_path, fold=1, check=False, pictures=True)["validation"]} == {
        "cadaver01_F231091",
        "04_F231091",
    }


def test_published_split_is_by_specimen_and_says_so(tmp_path, caplog):
    content = prepared(data_set(tmp_path), published_split=True)
    assert specimens(content["test"]) == set(PUBLISHED_TEST)
    assert specimens(content["training"]) == set(PUBLISHED_POOL)
    assert {case["fold"] for case in content["training"]} == set(range(11))
    assert "legs of one donor are in training and test" in caplog.text
    assert all(name in caplog.text for name in ("05_S232132L", "07_S232132R", "08_S231989L", "09_S231989R"))
    assert len(load_datalist(tmp_path, fold=3, check=False, pictures=True)["validation"]) == 2


def test_images_without_a_label_are_left_out_and_counted(tmp_path, caplog):
    root = data_set(tmp_path, ["01_F1", "03_F3"])
    (root / "01_F1/Linear18/record01/Label_partial_gradient/169990_label.png").unlink()
    assert len(prepared(root, test=[])["training"]) == 3
    assert "01_F1: 1 images without a label are left out" in caplog.text


def test_other_folder_names_and_another_file_can_be_given(tmp_path):
    root = data_set(tmp_path / "data", ["01_F1"])
    (root / "01_F1/Linear18/record01/UltrasoundImages").rename(root / "01_F1/Linear18/record01/frames")
    arguments = [str(root), "--images", "frames", "--test", "--out", str(tmp_path / "list.json")]
    assert main(arguments) == 0
    assert len(json.loads((tmp_path / "list.json").read_text())["training"]) == 2


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "no folders such as 05_S232132L; give the folder of the specimens"),
        (["01_F1"], {"labels": ["bones"]}, "no image in folders UltrasoundImages has a label in bones beside it"),
        (["01_F1"], {"test": [1]}, "all specimens with labels are for test; give fewer numbers"),
    ],
)
def test_bad_input_has_one_clear_error(tmp_path, names, options, message):
    with pytest.raises(InputError, match=message):
        prepare_ultrabones(data_set(tmp_path, names), **options)


def test_command_tells_an_error_by_its_exit_code(tmp_path, caplog):
    assert main([str(tmp_path / "absent")]) == 2
    assert "no folders such as" in caplog.text
