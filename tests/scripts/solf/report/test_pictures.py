import nibabel as nib
import numpy as np
import pytest

from scripts.solf.report.review import ReviewOptions
from tests.scripts.solf.report.test_slices import AFFINE, kidneys, volume_of
from tests.scripts.solf.report.test_write import ORGANS, load, received, small_table, write

ROWS = [("a", 2, 0.2, 0.95), ("a", 3, 0.38, 0.92), ("a", 66, 0.5, 0.8)]


def pictured(folder, labels, *, rows=ROWS, name="map.nii.gz", images="", **options):
    """Write a report of one case whose two kidneys are rejected, and return it with its review."""
    folder.mkdir(exist_ok=True)
    if labels is not None:
        nib.save(nib.Nifti1Image(labels, AFFINE), folder / name)
    review = ReviewOptions(labels=5, images=images, organs=ORGANS.values(), cases=["a"], **options.pop("review", {}))
    sources = dict.fromkeys(("a", "b"), str(folder / name))
    report = write(folder, small_table(rows), sources=sources, review=review, **options)
    return report, received(report, "review")


def test_review_shows_each_label_beside_an_ordinary_one(tmp_path):
    report, review = pictured(tmp_path, kidneys())
    items = review["items"]
    assert (items["label"], items["decision"]) == ([2, 3, 66], ["reject", "reject", "keep"])
    assert [(volume_of(received(report, one["file"])) == 1).sum() for one in items["picture"][:2]] == [432, 432]
    assert list(review["ordinary"]) == ["66"]
    assert review["ordinary"]["66"]["case"] == "a"
    assert items["values"][0] == [0.2, 0.95]


def test_each_case_is_read_once(tmp_path):
    calls = []
    rows = [*ROWS, ("b", 2, 0.5, 0.8), ("b", 3, 0.51, 0.8)]
    pictured(tmp_path, kidneys(), rows=rows, load=lambda path: calls.append(path) or load(path))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (None, "map.nii.gz: no such file; correct the path"),
        (np.zeros((4, 4, 4), np.uint8), "map.nii.gz: does not hold label 2 any more"),
        (np.full((4, 4, 4), 0.5, np.float32), "map.nii.gz: holds 0.5, not a label"),
    ],
)
def test_label_without_a_picture_says_why(tmp_path, labels, why):
    report, review = pictured(tmp_path, labels)
    picture = review["items"]["picture"][0]
    assert picture["why"].startswith(why)
    assert not picture["why"].endswith(".")  # the page adds it
    assert not list((report / "data").glob("slices-*"))


def test_unknown_source_is_a_reason(tmp_path):
    review = received(write(tmp_path, small_table(ROWS)), "review")
    assert review["items"]["picture"][0] == {"why": "the path of its label map is unknown"}


def test_image_is_shown_and_its_absence_is_noted(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    nib.save(nib.Nifti1Image(np.where(kidneys() == 2, 100, 0).astype(np.int16), AFFINE), images / "a.nii.gz")
    report, review = pictured(tmp_path / "out", kidneys(), rows=[*ROWS, ("b", 2, 0.5, 0.8)], images=images)
    data = received(report, review["items"]["picture"][0]["file"])
    own, image = volume_of(data) == 1, volume_of(data, "image")
    assert image[own].mean() > 10 * image[~own].mean()
    assert review["ordinary"]["2"]["without_image"] == "no image has the name of this case"
    (images / "a.nii.gz").write_bytes(b"\x1f\x8bnothing")
    _, review = pictured(tmp_path / "again", kidneys(), images=images)
    assert review["items"]["picture"][0]["without_image"].startswith("a.nii.gz: cannot be read whole")


def test_no_labels_for_review_need_no_maps(tmp_path):
    def refuse(path):
        raise AssertionError(path)

    report = write(tmp_path, small_table(ROWS), labels=0, load=refuse, sources={"a": "a.nii"})
    assert received(report, "review") == {"items": {"case": [], "label": []}, "ordinary": {}}


def test_rejected_labels_become_crops(tmp_path):
    pictured(tmp_path, kidneys(), review={"crops": True})
    found = sorted(str(path.relative_to(tmp_path / "crops")) for path in (tmp_path / "crops").rglob("*.nii.gz"))
    assert found == ["a/2_kidney_right_labels.nii.gz", "a/3_kidney_left_labels.nii.gz"]
