import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data.case_checks import check_cases
from scripts.io.loading import LoadVolumed
from tests.scripts.io.volume_files import (
    BAD_FILES,
    BAD_IMAGES,
    OBLIQUE,
    SHAPE,
    with_values,
    write_array,
    write_case,
    write_image,
    write_volume,
)


def problems(*items, **options):
    """Return the lines of the message."""
    with pytest.raises(InputError) as error:
        check_cases(items, **{"num_classes": 14, **options})
    count = "1 problem" if len(str(error.value).split("\n")) == 2 else r"\d+ problems"
    assert re.match(rf"check of {len(items)} cases: {count}; correct or replace the files, ", str(error.value))
    return str(error.value).split("\n")[1:]


def test_sound_cases_pass(tmp_path):
    sound = write_case(tmp_path)
    scaled = write_case(tmp_path, image="b.nii", label="b_label.nii")
    image = nib.Nifti1Image(np.full(SHAPE, 2, np.float64), OBLIQUE)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, 1.0)
    nib.save(image, scaled["label"])
    without_label = {"image": str(tmp_path / "two.nii.gz")}
    nib.save(nib.Nifti2Image(np.arange(np.prod(SHAPE), dtype=">i2").reshape(SHAPE), OBLIQUE), without_label["image"])
    check_cases([sound, scaled, without_label], num_classes=14)


@pytest.mark.parametrize("message", {**BAD_FILES, **BAD_IMAGES})
def test_bad_image_is_refused_as_loading_it_is(tmp_path, message):
    path = write_image(tmp_path / "ct.nii.gz")
    {**BAD_FILES, **BAD_IMAGES}[message](path)
    (line,) = problems({"image": str(path)})
    assert line.startswith(f"{path}: {message}")
    with pytest.raises(InputError) as error:
        LoadVolumed("image")({"image": str(path)})
    assert str(error.value) == line


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_label_is_refused_as_loading_it_is(tmp_path, message):
    case = write_case(tmp_path)
    BAD_FILES[message](Path(case["label"]))
    (line,) = problems(case)
    assert line.startswith(f"{case['label']}: {message}")
    with pytest.raises(InputError) as error:
        LoadVolumed(["image", "label"])(case)
    assert str(error.value) == line


def test_every_file_of_an_image_is_checked(tmp_path):
    paths = [str(write_image(tmp_path / f"{name}.nii.gz")) for name in ("t1", "t2", "flair")]
    write_volume(Path(paths[1]))
    Path(paths[2]).unlink()
    found = problems({"image": paths, "label": paths[2]})
    assert [line.split(": ")[0] for line in found] == [paths[1], paths[2], paths[2]]


def test_check_image_gets_paths_and_grids_and_returns_the_grid_of_the_label(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.nii", "b.nii", "missing.nii")]
    write_image(tmp_path / "a.nii", shape=(4, 4, 4))
    write_image(tmp_path / "b.nii")
    label = str(write_volume(tmp_path / "label.nii.gz", value=1))
    seen = []

    def check_image(files, grids):
        seen.extend([files, [grid and grid.shape for grid in grids]])
        return ["problem of both"], grids[1]

    assert problems({"image": paths, "label": label}, check_image=check_image) == [
        f"{paths[2]}: no such file; correct the path.",
        "problem of both",
    ]
    assert seen == [paths, [(4, 4, 4), SHAPE, None]]


def test_copies_of_an_image_are_found(tmp_path):
    cases = [write_case(tmp_path, image=f"i{n}.nii.gz", label=f"l{n}.nii.gz") for n in range(3)]
    Path(cases[2]["image"]).write_bytes(Path(cases[0]["image"]).read_bytes())
    copy = f"{cases[2]['image']}: holds the same voxels as {cases[0]['image']}; replace one of them"
    assert problems(*cases) == [copy]
    check_cases(cases, num_classes=14, allow_copies=True)
    both = {"image": [cases[0]["image"], cases[2]["image"]]}
    assert problems(both, allow_copies=True) == [copy], "in one image no two sequences are the same"


def test_image_listed_twice_is_no_copy(tmp_path):
    case = write_case(tmp_path)
    check_cases([case, case], num_classes=14)


# Labels

SHIFTED = OBLIQUE + np.array([[0, 0, 0, 0.5]] + [[0] * 4] * 3)
BAD_LABELS = {
    "does not lie on the grid of its image: shape 5 x 6 x 8 instead of 5 x 6 x 7, centre 1.5 mm away; resample it": (
        lambda path: write_volume(path, shape=(5, 6, 8))
    ),
    "does not lie on the grid of its image: centre 0.5 mm away; resample it to that grid": (
        lambda path: write_volume(path, affine=SHIFTED)
    ),
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
    (line,) = problems(case)
    assert line.startswith(f"{case['label']}: {message}")


def write_pair(folder, image_affine, label_affine, shape=(512, 4, 4)):
    image = write_image(folder / "image.nii", affine=image_affine, shape=shape)
    label = write_volume(folder / "label.nii", value=1, dtype=np.uint8, affine=label_affine, shape=shape)
    return {"image": str(image), "label": str(label)}


def test_label_of_another_voxel_size_is_refused(tmp_path):
    """No entry of the affines differs by 0.1, but the far corner is 41 mm away."""
    case = write_pair(tmp_path, np.diag([0.70, 0.70, 1, 1]), np.diag([0.78, 0.78, 1, 1]))
    assert problems(case) == [
        f"{case['label']}: does not lie on the grid of its image: spacing 0.78 x 0.78 x 1 instead of 0.7 x 0.7 x 1 mm, "
        "centre 20.4 mm away; resample it to that grid"
    ]


@pytest.mark.parametrize("mm", [0, 0.05])
def test_label_shifted_by_less_than_a_tenth_of_a_mm_is_accepted(tmp_path, mm):
    shifted = np.eye(4)
    shifted[:3, 3] = 0, mm, 0
    check_cases([write_pair(tmp_path, np.eye(4), shifted)], num_classes=2)


def test_affine_rounding_is_tolerated(tmp_path):
    case = write_case(tmp_path)
    write_volume(Path(case["label"]), value=1, affine=OBLIQUE + 5e-4 * (np.arange(16).reshape(4, 4) < 12))
    check_cases([case], num_classes=14)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, 2, 3), ""),
        ((0, 1, 2, 4), ""),
        ((0, 3, 4), "label values 4 are outside 0, 1, 2, 3, and 3 are outside 0, 1, 2, 4"),
        ((0, 7), "label values 7 are outside 0, 1, 2, 3, and 7 are outside 0, 1, 2, 4"),
    ],
)
def test_label_may_hold_the_values_of_any_one_set(tmp_path, values, message):
    case = write_case(tmp_path)
    with_values(*values)(Path(case["label"]))
    options = {"num_classes": None, "label_sets": [(0, 1, 2, 3), (0, 1, 2, 4)]}
    if message:
        assert problems(case, **options) == [f"{case['label']}: {message}"]
    else:
        check_cases([case], **options)


def test_ignored_value_is_accepted_in_its_label_alone(tmp_path):
    cases = [write_case(tmp_path, image=f"i{n}.nii", label=f"l{n}.nii") for n in range(2)]
    for case in cases:
        with_values(0, 1, 255)(Path(case["label"]))
    found = problems({**cases[0], "ignored_label": 255}, cases[1])
    assert found == [f"{cases[1]['label']}: label values 255 are outside 0..13"]


def test_label_of_background_only_is_a_warning(tmp_path, caplog):
    case = write_case(tmp_path)
    write_volume(Path(case["label"]), value=0)
    with caplog.at_level(logging.WARNING):
        check_cases([case], num_classes=14)
    assert caplog.messages == [f"{case['label']}: the label is all background"]


def test_label_of_an_unreadable_image_is_still_checked(tmp_path):
    case = write_case(tmp_path)
    Path(case["image"]).unlink()
    write_array(Path(case["label"]), np.full(SHAPE, 99, np.uint8), affine=np.eye(4))
    assert problems(case) == [
        f"{case['image']}: no such file; correct the path.",
        f"{case['label']}: label values 99 are outside 0..13",
    ]


# All cases


def test_all_problems_are_listed_in_order(tmp_path):
    items = [write_case(tmp_path, image=f"i{n}.nii.gz", label=f"l{n}.nii.gz") for n in range(6)]
    Path(items[1]["image"]).unlink()
    Path(items[1]["label"]).unlink()
    write_volume(Path(items[4]["label"]), value=20, shape=(4, 4, 4))
    paths = [items[1]["image"], items[1]["label"], items[4]["label"], items[4]["label"]]
    assert [line.split(": ")[0] for line in problems(*items, workers=3)] == paths


@pytest.mark.parametrize("num_classes", [None, 0, 1])
def test_check_without_number_of_classes_is_refused(num_classes):
    message = rf"^num_classes is {num_classes or 0}; set it to the number of labels including the background$"
    with pytest.raises(InputError, match=message):
        check_cases([], num_classes=num_classes)
