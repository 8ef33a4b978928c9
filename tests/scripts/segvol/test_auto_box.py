import json

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.segvol.auto_box import BoxBook, boxes_around

SHAPE = (12, 10, 9)
AFFINE = np.diag([2.0, 2, 3, 1])


@pytest.fixture
def labels():
    """Two organs; one has an island."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[2:8, 3:7, 4:8] = 6
    array[11, 0, 0] = 6
    array[0:2, 8:10, 0:3] = 3
    return array


def book_of(folder, maps, *, affine=AFFINE, classes=None, margin=0):
    """Write the maps of cases, and make their book."""
    folder.mkdir(exist_ok=True)
    for case, labels in maps.items():
        nib.save(nib.Nifti1Image(labels, affine), folder / f"{case}_seg.nii.gz")
    (folder / "classes.json").write_text(json.dumps(classes or {"3": "kidney_left", "5": "spleen", "6": "liver"}))
    return BoxBook(folder, classes=folder / "classes.json", margin=margin)


def test_organs_of_a_map_become_prompts_with_its_class_ids(tmp_path, labels):
    found = book_of(tmp_path, {"p1": labels}).of("p1", Grid(SHAPE, AFFINE))
    assert [(p.case, p.name, p.class_id, p.kind) for p in found] == [
        ("p1", "left kidney", 3, "box+text"),
        ("p1", "liver", 6, "box+text"),
    ]
    assert [prompt.box for prompt in found] == [(0, 8, 0, 1, 9, 2), (2, 3, 4, 7, 6, 7)]


def test_margin_ends_at_the_edge_of_the_volume(labels):
    assert boxes_around(labels, [3, 6], 2) == {3: (0, 6, 0, 3, 9, 4), 6: (0, 1, 2, 9, 8, 8)}


def test_name_is_that_of_the_list_in_all_cases(tmp_path, labels):
    assert book_of(tmp_path, {"p1": labels}).class_names == {3: "left kidney", 5: "spleen", 6: "liver"}


def test_cases_without_a_map_are_left_out_and_named(tmp_path, labels, caplog):
    book = book_of(tmp_path, {"p1": labels, "of no case": labels})
    assert book.prompted([{"case": "p1"}, {"case": "p2"}]) == [{"case": "p1"}]
    assert "1 cases have no map and are left out: p2" in caplog.text


@pytest.mark.parametrize("there", [True, False])
def test_folder_without_a_map_of_any_case_is_refused(tmp_path, labels, there):
    book = book_of(tmp_path / "maps", {"p1": labels} if there else {})
    with pytest.raises(InputError, match=r"maps: holds no map of any case, such as p9_seg.nii.gz; set maps"):
        book.prompted([{"case": "p9"}])


def test_map_of_another_grid_is_refused(tmp_path, labels):
    book = book_of(tmp_path, {"p1": labels})
    with pytest.raises(InputError, match=r"p1_seg.nii.gz: does not lie on the grid of the image: centre 5.0 mm away"):
        book.of("p1", Grid(SHAPE, nib.affines.from_matvec(AFFINE[:3, :3], [0, 5, 0])))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(SHAPE, dtype=np.uint8), "holds none of the 3 organs of map_classes"),
        (np.full(SHAPE, 200, dtype=np.uint8), "holds none of the 3 organs of map_classes"),
        (np.full(SHAPE, 0.5, dtype=np.float32), "holds 0.5, not a class id"),
        (np.full(SHAPE, np.nan, dtype=np.float32), "holds nan, not a class id"),
        (np.zeros((*SHAPE, 2), dtype=np.uint8), "need \\(X, Y, Z\\)"),
    ],
)
def test_map_that_is_none_is_refused_by_name(tmp_path, labels, message):
    with pytest.raises(InputError, match=f"p1_seg.nii.gz.*{message}"):
        book_of(tmp_path, {"p1": labels}).of("p1")


@pytest.mark.parametrize("classes", [{"0": "background"}, {"70000": "liver"}])
def test_list_without_organs_or_with_impossible_ids_ends_the_run(tmp_path, labels, classes):
    with pytest.raises(InputError, match="needs organs, with ids from 1 to 65535"):
        book_of(tmp_path, {"p1": labels}, classes=classes).prompted([{"case": "p1"}])
