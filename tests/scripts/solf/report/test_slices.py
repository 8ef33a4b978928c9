import base64
import math
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.common.errors import InputError
from scripts.io.nifti import StoredVolume
from scripts.solf.report.slices import MAX_VOXELS, LabelMap, Picture, cut_label

AFFINE = np.diag([4.0, 4, 5, 1])
ORGANS = {2: "kidney_right", 3: "kidney_left", 66: "muscle"}


def kidneys(shape=(40, 30, 36)):
    """Muscle around two kidneys, the right one (2) on the patient's right (RAS)."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[4:36, 4:26, 2:34] = 66
    labels[26:32, 10:16, 10:22] = 2
    labels[8:14, 10:16, 10:22] = 3
    return labels


def volume_of(data, key="map"):
    """Decode tiles into (x, y, z), as the page does."""
    sheet = np.asarray(Image.open(BytesIO(base64.b64decode(data[key].split(",")[1]))).convert("L"))
    (x, y, z), across = data["size"], data["across"]
    tiles = sheet.reshape(math.ceil(z / across), y, across, x).swapaxes(1, 2).reshape(-1, y, x)[:z]
    return tiles.transpose(2, 1, 0)


def cut(labels, affine=AFFINE, *, label=2, rejected=(2, 3), picture=None):
    return cut_label(LabelMap(labels, affine, ORGANS, rejected), label, picture)


def test_crop_holds_the_label_and_its_neighbours_by_name():
    labels = kidneys()
    labels[19:23, 10:16, 10:22] = 3
    data = cut(labels)
    found = volume_of(data)
    assert data["names"] == ["", "kidney_right", "kidney_left", "muscle"]
    assert data["rejected"] == [1, 2]
    assert (found == 1).sum() == 6 * 6 * 12
    assert data["mm"] == [4, 4, 5]
    assert (found[data["start"][0]] == 1).sum() == 6 * 12
    right, left = np.argwhere(found == 1)[:, 0].mean(), np.argwhere(found == 2)[:, 0].mean()
    assert right > left  # x runs to the patient's right


@pytest.mark.parametrize("axcodes", ["PSL", "LIA", "SRA", "ASR"])
def test_crop_does_not_depend_on_the_orientation(axcodes):
    image = nib.Nifti1Image(kidneys(), AFFINE)
    grey = nib.Nifti1Image(np.arange(kidneys().size, dtype=np.float32).reshape(kidneys().shape), AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axcodes))
    window = (0.0, float(kidneys().size))
    straight = cut(kidneys(), picture=Picture(StoredVolume(np.asarray(grey.dataobj), AFFINE), window))
    turned, own = image.as_reoriented(turn), Picture(StoredVolume(np.asarray(grey.dataobj), AFFINE), window)
    assert cut(np.asarray(turned.dataobj), turned.affine, picture=own) == straight


def test_large_label_is_sampled_to_at_most_96_voxels_and_keeps_its_size_in_mm():
    labels = np.zeros((300, 40, 40), np.uint8)
    labels[10:290, 5:35, 5:35] = 2
    data = cut(labels, np.diag([1.0, 2, 2, 1]))
    assert data["size"] == [MAX_VOXELS, 40, 40]
    assert data["size"][0] * data["mm"][0] == pytest.approx(300)
    assert (volume_of(data) == 1).any(axis=(1, 2)).mean() == pytest.approx(280 / 300, abs=0.02)


def test_image_lies_under_its_label_on_any_grid():
    """The image is bright where the label is, on another grid than the map."""
    fine = np.kron(kidneys() == 2, np.ones((2, 2, 1))).astype(np.int16) * 300 - 200
    affine = np.diag([2.0, 2, 5, 1])
    affine[:3, 3] = [-1, -1, 0]
    for stored, slope, inter in ((fine, 1.0, 0.0), (fine + 200, 1.0, -200.0)):
        picture = Picture(StoredVolume(stored, affine, slope, inter), (-200.0, 100.0))
        data = cut(kidneys(), picture=picture)
        own, image = volume_of(data) == 1, volume_of(data, "image")
        assert image[own].mean() > 230
        assert image[~own].mean() < 20


def test_ct_has_its_window_and_others_percentiles(tmp_path):
    rng = np.random.default_rng(0)
    for name, values in {
        "ct": rng.integers(-1000, 1500, (12, 12, 12)),
        "mr": rng.integers(0, 1000, (12, 12, 12)),
    }.items():
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
    assert Picture.read(str(tmp_path / "ct.nii.gz")).window == (-175, 250)
    low, high = Picture.read(str(tmp_path / "mr.nii.gz")).window
    assert 0 <= low < 60
    assert 940 < high <= 1000


def test_more_labels_than_a_byte_holds_share_the_last_index():
    labels = np.zeros((40, 40, 4), np.uint16)
    labels[...] = np.arange(1600).reshape(40, 40, 1) % 700 + 1
    data = cut(labels, np.eye(4), label=699)
    found = volume_of(data)
    assert found.max() == 255
    assert (found == 1).sum() == (labels == 699).sum()
    assert len(data["names"]) == 255


def test_label_that_the_map_lacks_is_refused():
    for label in (7, 200):
        with pytest.raises(InputError, match=f"does not hold label {label} any more"):
            cut(kidneys(), label=label)
