import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.preview.marks import Mark, middle_of, to_ras_marks
from scripts.preview.png import preview_png
from scripts.preview.rendering import to_ras

SHAPE = (10, 12, 14)
TURNED = nib.affines.from_matvec(np.array([[0.0, 0, -3], [-2, 0, 0], [0, 2, 0]]), [5, 6, 7])
NONE = np.zeros((0, 3))


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1, 2, 1]), TURNED])
def test_marks_go_where_the_image_is_turned(affine):
    volume = np.zeros(SHAPE)
    volume[2, 3, 4] = 1
    (mark,) = to_ras_marks([Mark(1, np.array([[2, 3, 4]]), NONE, np.array([2, 3, 4, 5, 7, 9]))], affine, SHAPE)
    assert mark.points.tolist() == np.argwhere(to_ras(volume, affine)).tolist()
    volume[2:6, 3:8, 4:10] = 1
    filled = np.argwhere(to_ras(volume, affine))
    assert mark.box.tolist() == [*filled.min(axis=0), *filled.max(axis=0)]


def test_slices_go_through_the_first_mark_that_has_a_place():
    text, box = Mark(1, NONE, NONE, None), Mark(2, NONE, NONE, np.array([0, 2, 4, 2, 4, 8.0]))
    assert middle_of([text]) is None
    assert middle_of([text, box]) == {"sagittal": 1, "coronal": 3, "axial": 6}


def test_marks_are_drawn_in_the_colour_of_their_class(tmp_path):
    image, pred = np.zeros((64, 64, 16)), np.zeros((64, 64, 16), dtype=np.uint8)
    options = {"affine": np.diag([2.0, 2, 4, 1]), "class_names": {1: "cyst"}, "window": (0.0, 1.0)}
    marks = [Mark(1, np.array([[40, 20, 8]]), np.array([[10, 50, 8]]), np.array([30, 10, 6, 50, 30, 10]))]
    pictures = []
    for name, drawn in (("without", []), ("with", marks)):
        preview_png(image, pred, tmp_path / f"{name}.png", marks=drawn, **options)
        pictures.append(np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int))
    changed = np.abs(pictures[0] - pictures[1]).sum(axis=2) > 60
    assert 200 < changed.sum() < changed.size / 20
