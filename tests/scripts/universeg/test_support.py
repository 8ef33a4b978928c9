import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.common.errors import InputError
from scripts.universeg.support import SupportSet
from tests.scripts.universeg.support_files import AFFINE, transform, write_pictures, write_volume


def support_of(source):
    return SupportSet(source, transform())


def test_pictures_are_paired_by_name_and_put_on_the_grid_of_the_network(tmp_path):
    support = support_of(write_pictures(tmp_path, n=3))
    assert [one.case for one in support.slices] == ["p0", "p1", "p2"]
    assert support.slices[0].image.shape == support.slices[0].label.shape == (16, 16)
    assert [value.item() for value in support.slices[0].image.aminmax()] == [0, 1]
    assert support.values == {1: 1, 2: 2}


def test_rows_and_columns_are_those_of_the_picture(tmp_path):
    write_pictures(tmp_path, n=1, shape=(16, 16))
    one = support_of(tmp_path).slices[0]
    np.testing.assert_array_equal(one.label, np.asarray(Image.open(tmp_path / "labels" / "p0.png")))


def test_labelled_slices_of_a_volume_alone_are_examples(tmp_path):
    support = support_of(write_volume(tmp_path, labelled=(1, 4))[0])
    assert [one.index for one in support.slices] == [1, 4]


def test_tensors_hold_the_mask_of_one_class(tmp_path):
    support = support_of(write_volume(tmp_path, labelled=(1, 4), class_of=lambda z: 3 if z == 1 else 7)[0])
    assert support.values == {1: 3, 2: 7}
    assert support.showing(1) == [0]
    images, masks = support.tensors([0, 1], 2)
    assert images.shape == masks.shape == (1, 2, 1, 16, 16)
    assert masks.flatten(2).any(2).tolist() == [[False, True]]
    assert masks.dtype == torch.float32


def test_datalist_lists_pairs_and_names_classes(tmp_path):
    write_pictures(tmp_path, n=2, classes=(1, 5))
    content = {
        "labels": {"0": "background", "1": "spleen"},
        "training": [{"image": f"images/p{i}.png", "label": f"labels/p{i}.png"} for i in range(2)],
    }
    (tmp_path / "list.json").write_text(json.dumps(content))
    assert support_of(tmp_path / "list.json").class_names == {1: "spleen", 2: "class 5"}


def test_folder_names_classes_in_labels_json(tmp_path):
    write_pictures(tmp_path, classes=(1,))
    (tmp_path / "labels.json").write_text('{"1": "cell"}')
    assert support_of(tmp_path).class_names == {1: "cell"}


def test_empty_label_is_left_out_with_a_warning(tmp_path, caplog):
    write_pictures(tmp_path, n=2)
    Image.new("L", (24, 20)).save(tmp_path / "labels" / "p0.png")
    assert [one.case for one in support_of(tmp_path).slices] == ["p1"]
    assert "p0.png: left out of the support, its label is empty" in caplog.text


def replace(folder, values, name="labels/p0.png"):
    Image.fromarray(values).save(folder / name)


def empty_all(folder):
    for path in (folder / "labels").iterdir():
        Image.new("L", (24, 20)).save(path)


def fractions(folder):
    for kind in ("images", "labels"):
        (folder / kind / "p0.png").unlink()
        nib.save(
            nib.Nifti1Image(np.linspace(0, 1, 60, dtype=np.float32).reshape(5, 4, 3), AFFINE), folder / kind / "p0.nii"
        )


BAD = {
    "no support": (shutil.rmtree, "no support; give a folder that holds the folders images and labels, or a datalist"),
    "empty folders": (
        lambda folder: [path.unlink() for path in folder.glob("*/*")],
        "holds no pair of image and label; give at least one",
    ),
    "no foreground": (empty_all, "no support label has foreground; give at least one that has"),
    "other size": (
        lambda folder: replace(folder, np.ones((10, 24), dtype=np.uint8)),
        r"p0.png: does not lie on the grid of its image: shape 24 x 10 x 1 instead of 24 x 20 x 1.*; give a label of",
    ),
    "no label": (lambda folder: (folder / "labels" / "p0.png").unlink(), r"p0.png: no label in labels"),
    "fractions": (fractions, r"p0.nii holds 0\.\d+, not a class id"),
    "names": (lambda folder: (folder / "labels.json").write_text("[1]"), "labels.json: give the names of classes as"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_support_is_refused(tmp_path, kind):
    damage, message = BAD[kind]
    damage(write_pictures(tmp_path / "support", n=2))
    with pytest.raises(InputError, match=message):
        support_of(tmp_path / "support").class_names  # noqa: B018 (it is read now)
