import gzip
import json
import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.datalist import check_cases, load_datalist

SHAPE = (5, 6, 7)
OBLIQUE = np.array([[0.7, 0.1, 0.0, -30.0], [-0.1, 0.7, 0.2, 12.5], [0.0, -0.1, 3.0, 400.0], [0, 0, 0, 1.0]])


def write_volume(path, *, value=0, dtype=np.int16, shape=SHAPE, affine=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full(shape, value, dtype), affine), path)
    return path


def write_case(root, *, image="imagesTr/img0001.nii.gz", label="labelsTr/label0001.nii.gz"):
    write_volume(root / image, value=-100)
    write_volume(root / label, value=1, dtype=np.uint8)
    return {"image": str(root / image), "label": str(root / label)}


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


def test_absolute_path_inside_is_taken_also_through_a_linked_dataset_dir(tmp_path):
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
        ({"training": "x"}, "1 problem; mend these entries\ntraining: is 'x', need a list"),
        ({"training": None}, "training: is None, need a list"),
        ({"training": {}}, "training: is a dict, need a list"),
        ({"training": ["a.nii.gz"]}, "training[0]: is 'a.nii.gz', need an object with image and label"),
        ({"test": [7]}, "test[0]: is 7, need an object with image and label"),
        ({"training": [{"image": "a.nii.gz"}]}, "training[0]: label is None, need one path as text"),
        ({"training": [{"image": ["a.nii.gz"]}]}, "training[0]: image is a list, need one path as text"),
        ({"test": [""]}, "test[0]: image is '', need one path as text"),
        ({"test": ["a\0.nii.gz"]}, "test[0]: image is 'a\\x00.nii.gz', need one path as text"),
        ({"test": ["a\n.nii.gz"]}, "test[0]: image is 'a\\n.nii.gz', need one path as text"),
        ({"test": ["../a.nii.gz"]}, "test[0]: image '../a.nii.gz' leaves {root}; use a path inside it"),
        ({"test": ["x/../../a.nii.gz"]}, "test[0]: image 'x/../../a.nii.gz' leaves {root}"),
        ({"test": ["/etc/a.nii.gz"]}, "test[0]: image '/etc/a.nii.gz' leaves {root}"),
        ({"test": ["{root}-2/a.nii.gz"]}, "test[0]: image '{root}-2/a.nii.gz' leaves {root}"),
        ({"test": ["."]}, "test[0]: image '.' is not a .nii or .nii.gz file; convert it"),
        ({"test": ["a.mha"]}, "test[0]: image 'a.mha' is not a .nii or .nii.gz file; convert it"),
        ({"test": ["...nii"]}, "test[0]: image '...nii' is not a .nii or .nii.gz file; convert it"),
        ({"test": [1, 2], "training": [3]}, "dataset_0.json: 3 problems; mend these entries\n"),
        ({"validation": [entry(1)]}, 'dataset_0.json: no training cases; list some under "training"'),
        ({"training": [entry(1)]}, 'dataset_0.json: no validation cases; list some under "validation"'),
        (
            {"training": [entry(1), entry(1)], "validation": [entry(2)]},
            "cases seen in training cannot measure it; keep each file in one place, or give --allow_overlap true\n"
            "{root}/imagesTr/img0001.nii.gz: 2 times in training",
        ),
    ],
)
def test_bad_datalist_is_named(tmp_path, content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    write_json(tmp_path, text.replace("{root}", str(tmp_path)))
    with pytest.raises(ValueError, match=re.escape(message.replace("{root}", str(tmp_path)))):
        load_unchecked(tmp_path)


@pytest.mark.parametrize("other", ["validation", "test"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_file_in_training_and_elsewhere_is_leakage(tmp_path, other, key):
    lists = {"training": [entry(1)], "validation": [entry(2)], "test": [entry(3)]}
    lists[other][0][key] = f"x/../{entry(1)[key]}"
    write_json(tmp_path, lists)
    shared = tmp_path / entry(1)[key]
    with pytest.raises(ValueError, match=re.escape(f"{shared}: in training and {other}")):
        load_unchecked(tmp_path)


def test_leakage_is_seen_through_links(tmp_path):
    case = write_case(tmp_path)
    Path(tmp_path / "imagesTr/img0002.nii.gz").symlink_to(case["image"])
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(2)]})
    with pytest.raises(ValueError, match="in training and validation"):
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
    with pytest.raises(ValueError, match=r"imagesTs/c\.nii\.gz: no label in labelsTs"):
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
            "{root}: neither dataset_0.json nor a folder imagesTr is there; set dataset_dir, or for BTCV",
        ),
    ],
)
def test_bad_plain_folders_are_named(tmp_path, images, labels, message):
    write_plain_folders(tmp_path, [f"{n}.nii.gz" for n in images], [f"{n}.nii.gz" for n in labels])
    with pytest.raises(ValueError, match=re.escape(message.replace("{root}", str(tmp_path)))):
        load_unchecked(tmp_path)


def test_missing_dataset_dir_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"/none: not a folder; set dataset_dir to the folder that holds"):
        load_unchecked(tmp_path / "none")


def test_unknown_required_section_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"required names unknown sections \['train'\]; use some of"):
        load_unchecked(tmp_path, required=("train",))


@pytest.mark.parametrize("num_classes", [None, 1])
def test_check_without_class_number_is_refused(tmp_path, num_classes):
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(2)]})
    with pytest.raises(ValueError, match=r"num_classes is [01]; set it to the number of labels"):
        load_datalist(tmp_path, num_classes=num_classes)


def test_check_covers_required_sections_only(tmp_path):
    write_case(tmp_path, image=entry(2)["image"], label=entry(2)["label"])
    write_json(tmp_path, {"training": [entry(1)], "validation": [entry(2)]})
    load_datalist(tmp_path, num_classes=14, required=("validation",))
    with pytest.raises(ValueError, match=r"img0001\.nii\.gz: is missing"):
        load_datalist(tmp_path, num_classes=14)


def test_sound_cases_pass(tmp_path):
    sound = write_case(tmp_path)
    scaled = write_case(tmp_path, image="b.nii", label="b_label.nii")
    image = nib.Nifti1Image(np.full(SHAPE, 2, np.float64), OBLIQUE)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, 1.0)
    nib.save(image, scaled["label"])
    second = {"image": str(tmp_path / "two.nii.gz")}
    nib.save(nib.Nifti2Image(np.zeros(SHAPE, ">i2"), OBLIQUE), second["image"])
    check_cases([sound, scaled, second], num_classes=14)


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def flip_a_stored_byte(path):
    """Damage one voxel of an uncompressed gzip block: only the checksum at the end tells."""
    packed = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    packed[-20] ^= 1
    path.write_bytes(packed)


def write_flat_volume(path):
    header = nib.Nifti1Header()
    header.set_sform(np.diag([1, 1, 0, 1]), code=1)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), None, header), path)


DAMAGES = {
    "is missing": lambda path: path.unlink(),
    "cannot be read whole ([Errno 21] Is a directory": lambda path: (path.unlink(), path.mkdir()),
    "cannot be read whole (0 bytes)": lambda path: path.write_bytes(b""),
    "cannot be read whole (Not a gzipped file": lambda path: path.write_bytes(b"<html>login</html>"),
    "cannot be read whole (not a NIfTI file)": lambda path: path.write_bytes(gzip.compress(b"x" * 999)),
    "cannot be read whole (Compressed file ended before": lambda path: truncate(path, -30),
    "cannot be read whole (CRC check failed": flip_a_stored_byte,
    "has shape (5, 6, 7, 2), need three dimensions": lambda path: write_volume(path, shape=(*SHAPE, 2)),
    "has values of type complex64, need integers or floats": lambda path: write_volume(path, dtype="c8"),
    "has an affine that is not finite or not invertible": write_flat_volume,
}


@pytest.mark.parametrize("message", DAMAGES)
@pytest.mark.parametrize("key", ["image", "label"])
def test_unusable_file_is_named(tmp_path, message, key):
    case = write_case(tmp_path)
    DAMAGES[message](Path(case[key]))
    with pytest.raises(ValueError, match=re.escape(f"\n{case[key]}: {message}")):
        check_cases([case], num_classes=14)


def test_truncated_uncompressed_file_is_named(tmp_path):
    case = write_case(tmp_path, image="a.nii", label="b.nii")
    truncate(Path(case["image"]), -30)
    with pytest.raises(ValueError, match=r"a\.nii: cannot be read whole \(Expected 420 bytes, got 390 bytes"):
        check_cases([case], num_classes=14)


@pytest.mark.parametrize("sizes", [(32767, 32767, 32767), (-5, 6, 7), (0, 6, 7)])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_header_with_impossible_sizes_is_named(tmp_path, sizes, suffix):
    case = write_case(tmp_path, image="a.nii")
    data = bytearray(Path(case["image"]).read_bytes())
    data[42:48] = np.array(sizes, "<i2").tobytes()
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == "nii.gz" else data)
    with pytest.raises(ValueError, match=rf"b\.{suffix}: (cannot be read whole|has shape)"):
        check_cases([{"image": str(path)}], num_classes=14)


def with_values(*values):
    def write(path):
        data = np.zeros(SHAPE, np.float32)
        data.flat[: len(values)] = values
        nib.save(nib.Nifti1Image(data, OBLIQUE), path)

    return write


SHIFTED = OBLIQUE + np.array([[0, 0, 0, 0.5]] + [[0] * 4] * 3)
BAD_LABELS = {
    "has shape (5, 6, 8), its image (5, 6, 7)": lambda path: write_volume(path, shape=(5, 6, 8)),
    "has an affine up to 0.5 mm from its image's; resample it": lambda path: write_volume(path, affine=SHIFTED),
    "label values 0.5, 1.25 are not whole numbers": with_values(0.5, 1.25, 3),
    "label values nan are not whole numbers": with_values(np.nan),
    "label values 14, 255 are outside 0..13": with_values(1, 255, 13, 14),
    "label values -1, inf are outside 0..13": with_values(np.inf, -1),
    "label values 14, 15, 16, 17, 18, 19, 20, 21, ... are outside 0..13": with_values(*range(99)),
}


@pytest.mark.parametrize("message", BAD_LABELS)
def test_bad_label_is_named(tmp_path, message):
    case = write_case(tmp_path)
    BAD_LABELS[message](Path(case["label"]))
    with pytest.raises(ValueError, match=re.escape(f"\n{case['label']}: {message}")):
        check_cases([case], num_classes=14)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_that_is_not_finite_is_named(tmp_path, value):
    case = write_case(tmp_path)
    with_values(0, value)(Path(case["image"]))
    with pytest.raises(ValueError, match=r"img0001\.nii\.gz: holds NaN or infinite values"):
        check_cases([case], num_classes=14)


def test_affine_rounding_is_tolerated(tmp_path):
    case = write_case(tmp_path)
    write_volume(Path(case["label"]), value=1, affine=OBLIQUE + 5e-4 * (np.arange(16).reshape(4, 4) < 12))
    check_cases([case], num_classes=14)


def test_label_of_background_only_is_a_warning(tmp_path, caplog):
    case = write_case(tmp_path)
    write_volume(Path(case["label"]), value=0)
    with caplog.at_level(logging.WARNING):
        check_cases([case], num_classes=14)
    assert caplog.messages == [f"{case['label']}: the label is all background"]


def test_all_problems_come_at_once_one_a_line_in_order(tmp_path):
    items = [write_case(tmp_path, image=f"i{n}.nii.gz", label=f"l{n}.nii.gz") for n in range(6)]
    Path(items[1]["image"]).unlink()
    Path(items[1]["label"]).unlink()
    write_volume(Path(items[4]["label"]), value=20, shape=(4, 4, 4))
    with pytest.raises(ValueError, match="check of 6 cases: 4 problems; mend or replace") as error:
        check_cases(items, num_classes=14, workers=3)
    lines = str(error.value).split("\n")[1:]
    paths = [items[1]["image"], items[1]["label"], items[4]["label"], items[4]["label"]]
    assert [line.split(": ")[0] for line in lines] == paths
