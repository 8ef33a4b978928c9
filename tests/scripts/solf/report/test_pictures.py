import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.solf.transforms import LoadLabelMapd
from tests.scripts.solf.report.test_write import received, small_table, write

AMBER = (255, 176, 0)


def kidneys(shape=(40, 30, 36)):
    """Muscle around two kidneys, the right one (2) on the patient's right (RAS)."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[4:36, 4:26, 2:34] = 66
    labels[26:32, 10:16, 10:22] = 2
    labels[8:14, 10:16, 10:22] = 3
    return labels


def pictured(folder, labels, *, affine=None, name="map.nii.gz", **options):
    """Write a report of one case whose two kidneys are rejected, the right one farther, and return its worst case."""
    if labels is not None:
        nib.save(nib.Nifti1Image(labels, np.diag([4.0, 4, 5, 1]) if affine is None else affine), folder / name)
    table = small_table([("a", 2, 0.2, 0.95), ("a", 3, 0.38, 0.92), ("a", 66, 0.5, 0.8)])
    report = write(folder, table, sources={"a": str(folder / name)}, **options)
    return received(report, "overview")["worst"][0], report


def pixels(report, worst):
    return np.asarray(Image.open(report / worst["picture"]).convert("RGB")).astype(int)


def test_picture_outlines_the_rejected_organs_and_fills_the_worst(tmp_path):
    worst, report = pictured(tmp_path, kidneys())
    picture = pixels(report, worst)
    assert worst["size"] == [picture.shape[1], picture.shape[0]]
    outline = np.abs(picture - AMBER).max(axis=-1) < 40
    axial = np.flatnonzero(outline[:, : picture.shape[1] // 3].any(axis=0))
    middle = int(axial.mean())
    right, left = axial[axial < middle], axial[axial > middle]
    assert len(right) > 10
    assert len(left) > 10
    row = np.flatnonzero(outline[:, right[0] : right[-1]].any(axis=1)).mean().astype(int)
    inside = picture[row, [int(right.mean()), int(left.mean())]]
    assert inside[0].sum() > 1.5 * inside[1].sum()  # the patient's right is on the left


@pytest.mark.parametrize("axcodes", ["PSL", "LIA", "SRA"])
def test_picture_does_not_depend_on_the_orientation(tmp_path, axcodes):
    image = nib.Nifti1Image(kidneys(), np.diag([4.0, 4, 5, 1]))
    turn = nib.orientations.axcodes2ornt(axcodes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), turn))
    (tmp_path / "turned").mkdir()
    one, report = pictured(tmp_path, kidneys())
    other, turned_report = pictured(tmp_path / "turned", np.asarray(turned.dataobj), affine=turned.affine)
    assert np.array_equal(pixels(report, one), pixels(turned_report, other))


def test_picture_of_a_map_with_ids_of_its_own_is_the_same(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"7": "kidney_right", "1": "kidney_left", "9": "skeletal_muscle"}))
    (tmp_path / "own").mkdir()
    own = np.select([kidneys() == organ for organ in (2, 3, 66)], [7, 1, 9]).astype(np.uint8)
    one, report = pictured(tmp_path, kidneys())
    reader = LoadLabelMapd("image", label_names=tmp_path / "names.json")
    other, own_report = pictured(tmp_path / "own", own, load=lambda path: reader({"image": path})["image"])
    assert np.array_equal(pixels(report, one), pixels(own_report, other))


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (None, "map.nii.gz: no such file; correct the path"),
        (np.zeros((4, 4, 4), np.uint8), "map.nii.gz: does not hold label 2 any more"),
        (np.full((4, 4, 4), 0.5, np.float32), "map.nii.gz: holds 0.5, not a label"),
        (np.full((4, 4, 4), -1, np.int16), "map.nii.gz: holds values from -1 to -1, labels are 0 to 254"),
    ],
)
def test_map_that_cannot_be_drawn_has_no_picture_but_a_reason(tmp_path, labels, why):
    worst, report = pictured(tmp_path, labels)
    assert worst["picture"] is None
    assert worst["why"].startswith(why)
    assert not worst["why"].endswith(".")  # the page adds it
    assert not list((report / "pictures").iterdir())


def test_damaged_or_unknown_map_has_no_picture_but_a_reason(tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"\x1f\x8bnothing")
    worst, _ = pictured(tmp_path, None, name="bad.nii.gz")
    assert worst["why"].startswith("bad.nii.gz: cannot be read whole")
    table = small_table([("a", 2, 0.2, 0.95)])
    assert received(write(tmp_path, table), "overview")["worst"][0]["why"] == "the path of its label map is unknown"
