import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.solf.report.review import KEPT_EVERY, PER_CASE, PER_ORGAN, ReviewOptions, ReviewSet


def labels_of(decision, margins, *, case=None, label=None):
    count = len(margins)
    return pd.DataFrame(
        {
            "case": case or [f"c{n:03d}" for n in range(count)],
            "label": label or list(range(1, count + 1)),
            "organ": [f"organ {n}" for n in label or range(1, count + 1)],
            "decision": decision,
            "margin": margins,
        }
    )


def chosen(*tables, **options):
    review = ReviewSet(ReviewOptions(organs=["organ 7"], **options))
    for table in tables:
        review.add(table)
    return review.chosen()


def test_worst_are_mixed_with_labels_just_inside():
    rejected, kept = labels_of("reject", [0.1, 3.0, 2.0, 0.5]), labels_of("keep", [-0.2, -np.inf, -0.01, -0.5])
    found = chosen(rejected, kept, labels=6)
    assert found["margin"].tolist() == [3.0, 2.0, -0.01, 0.5, 0.1, -0.2]
    assert KEPT_EVERY == 3


def test_too_few_rejected_labels_are_followed_by_kept_ones():
    found = chosen(labels_of("reject", [1.0]), labels_of("keep", [-0.3, -0.1, -0.2]), labels=3)
    assert found["margin"].tolist() == [1.0, -0.1, -0.2]


def test_missing_organs_are_not_reviewed():
    assert len(chosen(labels_of("missing", [np.nan, np.nan]), labels=5)) == 0


def test_truncated_cases_do_not_fill_the_worst():
    """Three cases lack half of their labels, which lie farthest outside; thirty others have one wrong label."""
    truncated = [labels_of("reject", [9.0] * 20, case=[f"t{n}"] * 20) for n in range(3)]
    others = labels_of("reject", [1.0] * 30, label=list(range(101, 131)))
    found = chosen(*truncated, others, labels=30)["case"]
    assert found[:6].str.startswith("t").all()
    assert (found.str.startswith("t").groupby(found).sum() <= PER_CASE).all()
    assert found.nunique() == 27


def test_one_organ_does_not_fill_the_worst():
    same = labels_of("reject", [9.0] * 30, label=[7] * 30)
    found = chosen(same, labels_of("reject", [1.0] * 30, label=list(range(101, 131))), labels=30)
    assert (found["label"] == 7).sum() == PER_ORGAN


@pytest.mark.parametrize("order", ["random", "organ 7"])
def test_samples_do_not_depend_on_chunks(order):
    table = labels_of("keep", list(np.linspace(-2, -1, 100)), label=[7] * 100)
    whole = chosen(table, labels=10, order=order)
    parts = chosen(table[:33], table[33:], labels=10, order=order)
    pd.testing.assert_frame_equal(whole, parts)
    assert len(whole) == 10
    assert (whole["case"].is_monotonic_increasing) == (order != "random")


def test_order_by_organ_has_no_other_organ():
    found = chosen(labels_of("keep", [-1.0] * 20), labels=10, order="organ 7")
    assert found["organ"].tolist() == ["organ 7"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": -1}, "review_labels is -1: give a whole number from 0."),
        ({"labels": 1.5}, "review_labels is 1.5: give a whole number from 0."),
        ({"order": "best"}, "review_order is 'best': give worst, random or the name of an organ."),
        ({"crops": "maybe"}, "crops is 'maybe': give true or false."),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError) as error:
        ReviewOptions(organs=["liver"], **options)
    assert str(error.value) == message


def test_images_are_found_by_the_name_of_the_case(tmp_path):
    for name in ("a.nii.gz", "b_0000.nii", "other.nii.gz"):
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / name)
    found = ReviewOptions(images=tmp_path, cases=["a", "b", "c"]).paths
    assert found == {"a": str(tmp_path / "a.nii.gz"), "b": str(tmp_path / "b_0000.nii")}
    with pytest.raises(
        InputError, match=r"none of its 4 images has the name of a case, such as z\.nii\.gz; name images"
    ):
        ReviewOptions(images=tmp_path, cases=["z"])
