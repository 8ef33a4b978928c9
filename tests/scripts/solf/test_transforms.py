import itertools
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.solf.filter import LabelFilter, clean_case
from scripts.solf.measuring import case_features
from scripts.solf.tables import COLUMNS
from scripts.solf.transforms import LargestComponentsd, LoadLabelMapd, SaveCleanedd, ShapeFeaturesd, largest_components
from tests.conftest import SHARED_DATA
from tests.scripts.solf.conftest import AFFINE, small_map

OBLIQUE = np.array([[0, -2.5, 0, 10], [1.9, 0, 0.6, -5], [-0.6, 0, 1.9, 7], [0, 0, 0, 1.0]])


def reoriented(label, order, flips):
    """Store a map on the grid of AFFINE with other axes; return its voxels and its affine."""
    ornt = np.stack([order, flips], axis=1)
    image = nib.Nifti1Image(label, AFFINE).as_reoriented(ornt)
    return np.asarray(image.dataobj), image.affine


def load(path, **options):
    return LoadLabelMapd("image", **options)({"image": path, "case": "a"})["image"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, ">i2"])
def test_label_maps_of_any_type_are_read_as_uint8_on_their_grid(label_file, dtype):
    label = small_map(0)
    volume = load(label_file(label.astype(dtype), affine=OBLIQUE))
    assert volume.dtype == torch.uint8
    assert volume.shape == (1, *label.shape)
    np.testing.assert_array_equal(volume[0].numpy(), label)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)
    assert volume.meta["case"] == "a"


def test_scaled_label_maps_are_scaled(tmp_path):
    image = nib.Nifti1Image(np.array([[[0, 1, 2]]], np.int16), np.eye(4))
    image.header.set_slope_inter(2, 1)
    nib.save(image, tmp_path / "scaled.nii")
    stored = nib.load(tmp_path / "scaled.nii")
    np.testing.assert_array_equal(load(str(tmp_path / "scaled.nii"))[0], np.asarray(stored.dataobj))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 3, 3), 0.53, np.float32), "holds 0.53, not a label; give a label map, resampled with nearest"),
        (np.full((3, 3, 3), np.nan, np.float32), "holds values from nan to nan, labels are 0 to 65535"),
        (
            np.full((3, 3, 3), -1, np.int16),
            "holds values from -1 to -1, labels are 0 to 65535; give a label map, not an image.",
        ),
        (np.full((3, 3, 3), 65536, np.int32), "labels are 0 to 65535; give a label map, not an image."),
        (np.ones((3, 3, 3, 2), np.uint8), "has shape (3, 3, 3, 2), need (X, Y, Z)"),
    ],
)
def test_file_that_is_not_a_label_map_is_refused_with_its_name(label_file, array, message):
    path = label_file(array)
    with pytest.raises(InputError, match=re.escape(path) + ".*" + re.escape(message)):
        load(path)


def test_names_of_totalsegmentator_become_organs(label_file, json_file):
    names = json_file({"1": "colon", "2": "vertebrae_L1", "3": "small_bowel", "4": "spleen", "5": "rib_left_3"})
    volume = load(label_file(np.arange(7, dtype=np.uint8).reshape(1, 7, 1)), label_names=names)
    assert volume.flatten().tolist() == [0, 18, 255, 18, 1, 20, 255]
    assert volume.dtype == torch.uint8
    assert volume.meta["sources"] == '{"1": 1, "2": 1, "3": 1, "4": 1, "5": 1, "6": 1}'


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("ignore_id", [255, 200, 1000])
def test_labels_of_the_table_without_a_name_of_their_own_are_mapped_to_it(label_file, json_file, dtype, ignore_id):
    """FreeSurfer's ids by the names of another table, ignored where it has none."""
    table = json_file({"1": "Left-Hippocampus", "2": "Right-Hippocampus"}, "table.json")
    names = json_file({"17": "left hippocampus", "53": "Hippocampus, right", "77": "WM-hypointensities"}, "names.json")
    label = np.array([0, 17, 53, 77, 99], dtype).reshape(5, 1, 1)
    volume = load(label_file(label), label_table=table, label_names=names, ignore_id=ignore_id)
    assert volume.flatten().tolist() == [0, 1, 2, ignore_id, ignore_id]
    assert volume.dtype == (torch.uint16 if ignore_id > 255 else torch.uint8)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float64])
def test_ids_above_255_are_read_measured_and_written(label_file, json_file, tmp_path, dtype):
    """As in FreeSurfer's aparc+aseg, with an ignore_id of its own."""
    table = json_file({"2": "a", "255": "b", "2035": "c", "65535": "d"})
    label = np.zeros((20, 9, 9), dtype)
    for n, value in enumerate((2, 255, 2035, 65535, 65000)):
        label[4 * n : 4 * n + 3, 2:7, 2:7] = value
    options = {"label_table": table, "ignore_id": 65000}
    item = LoadLabelMapd("image", **options)({"image": label_file(label), "case": "a"})
    assert item["image"].dtype == torch.uint16
    assert item["image"].meta["sources"] == '{"65000": 75}'
    features = ShapeFeaturesd("image", **options)(item)["features"]
    assert features[:, COLUMNS.index("voxel_count")].tolist() == [75] * 4
    assert features[:, COLUMNS.index("normalized_volume")].tolist() == [0.25] * 4  # the ignored ones are not measured
    SaveCleanedd("image", output_dir=tmp_path / "out", ignore_id=65000)(item)
    written = nib.load(tmp_path / "out" / "a_cleaned.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), label)
    assert written.get_data_dtype() == (np.uint16 if dtype is np.float64 else dtype)


def test_ignored_voxels_of_the_input_are_not_measured_and_stay(label_file):
    label = small_map(1)
    label[:, :2] = 255
    item = Compose([LoadLabelMapd("image"), LargestComponentsd("image"), ShapeFeaturesd("image")])(
        {"image": label_file(label)}
    )
    np.testing.assert_array_equal(item["image"][0] == 255, label == 255)
    without = largest_components(np.where(label == 255, 0, label))
    np.testing.assert_array_equal(item["features"], case_features(without, AFFINE, ORGANS))


def test_label_above_255_that_no_table_names_is_not_called_an_image(label_file):
    path = label_file(np.full((3, 3, 3), 900, np.int16))
    with pytest.raises(InputError) as error:
        ShapeFeaturesd("image")(LoadLabelMapd("image")({"image": path}))
    assert str(error.value).startswith(f"{path}: holds 1 label that the label table lacks: 900; set label_table, or")
    assert "image" not in str(error.value).removeprefix(path)


def test_image_is_called_one(label_file):
    path = label_file(np.arange(27, dtype=np.int16).reshape(3, 3, 3) * 30)
    with pytest.raises(InputError, match=r"or ignore_id\.$"):
        ShapeFeaturesd("image")(LoadLabelMapd("image")({"image": path}))
    path = label_file(np.arange(1000, dtype=np.int16).reshape(10, 10, 10) * 30)
    with pytest.raises(InputError, match=r"or ignore_id; or is it an image\?$"):
        ShapeFeaturesd("image")(LoadLabelMapd("image")({"image": path}))


@pytest.mark.parametrize("shape", [(30, 24, 28), (30, 24, 28, 1), (30, 24, 28, 1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_file_comes_out_with_the_header_that_it_came_with(tmp_path, shape, dtype):
    image = nib.Nifti1Image(small_map(1).reshape(shape).astype(dtype), None)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_sform(OBLIQUE, code="mni")
    image.header.set_qform(OBLIQUE, code="aligned")
    image.header["qoffset_x"] += 7  # the two affines differ
    image.header["descrip"] = b"by hand"
    image.header.set_intent("label")
    image.header["vox_offset"], image.header["magic"] = 352, b"n+1"
    voxels = np.asarray(image.dataobj).tobytes(order="F")
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4) + voxels)
    item = LoadLabelMapd("image")({"image": str(tmp_path / "a.nii"), "case": "a"})
    assert item["image"].shape == (1, 30, 24, 28)
    SaveCleanedd("image", output_dir=tmp_path)(item)
    given, written = nib.load(tmp_path / "a.nii"), nib.load(tmp_path / "a_cleaned.nii.gz")
    same = set(given.header.keys()) - {"scl_slope", "scl_inter"}
    assert {key: written.header[key].tolist() for key in same} == {key: given.header[key].tolist() for key in same}
    assert (written.shape, written.get_data_dtype()) == (shape, dtype)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(given.dataobj))


def test_names_without_any_organ_are_refused(json_file):
    path = json_file({"1": "hippocampus"})
    with pytest.raises(InputError, match=re.escape(f"{path}: none of its 1 names, such as 'hippocampus', is one of")):
        LoadLabelMapd("image", label_names=path)


REAL = {
    "brain_parcellation/label.nii.gz": 158,
    "ct_torso/label_totalsegmentator.nii.gz": 61,
}


@pytest.mark.parametrize("axcodes", ["LIA", "PIR", "SPL", "ARS", "RAS", "LPS"])
@pytest.mark.parametrize("name", list(REAL))
def test_real_label_maps_of_other_orientations_are_cleaned_exactly(tmp_path, json_file, name, axcodes):
    """FreeSurfer's LIA and others whose first axes are not the patient's x and y."""
    if not (SHARED_DATA / name).is_file():
        pytest.skip(f"{SHARED_DATA / name} is absent")
    image = nib.load(SHARED_DATA / name)
    target = nib.orientations.axcodes2ornt(axcodes)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
    nib.save(image, tmp_path / "a.nii.gz")
    given = np.asarray(image.dataobj)
    labels = [int(value) for value in np.unique(given) if value]
    assert len(labels) == REAL[name]
    table = json_file({str(value): f"label {value}" for value in labels})
    steps = [LoadLabelMapd("image", label_table=table), ShapeFeaturesd("image", label_table=table)]
    network = LabelFilter(label_table=table)
    network.voting[1] = True
    network.votes.fill_(1)
    network.low[3, 1] = 2.0  # no sphericity is above 1: the fourth label is rejected
    options = {"network": network, "postprocessing": SaveCleanedd("pred", output_dir=tmp_path)}
    clean_case({"image": str(tmp_path / "a.nii.gz"), "case": "a"}, transform=Compose(steps), **options)
    written = nib.load(tmp_path / "a_cleaned.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.where(given == labels[3], 255, given))
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
    assert nib.aff2axcodes(written.affine) == tuple(axcodes)
    same = ("xyzt_units", "sform_code", "qform_code", "datatype", "pixdim")
    loaded = nib.load(tmp_path / "a.nii.gz")
    assert {key: written.header[key].tolist() for key in same} == {key: loaded.header[key].tolist() for key in same}


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is absent")
@pytest.mark.parametrize("name", list(REAL))
def test_cleaned_file_is_about_as_small_as_it_came(tmp_path, name):
    item = LoadLabelMapd("image")({"image": str(SHARED_DATA / name), "case": "a"})
    SaveCleanedd("image", output_dir=tmp_path)(item)
    assert (tmp_path / "a_cleaned.nii.gz").stat().st_size < 1.01 * (SHARED_DATA / name).stat().st_size


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is absent")
@pytest.mark.parametrize(
    ("folder", "label", "names", "organs"),
    [
        ("ct_torso", "label_totalsegmentator", "totalsegmentator_ct_classes", 41),
        ("mr_torso", "label_totalsegmentator_mr", "totalsegmentator_mr_classes", 20),
    ],
)
def test_real_label_maps_of_totalsegmentator_are_measured(folder, label, names, organs):
    path = str(SHARED_DATA / folder / f"{label}.nii.gz")
    item = LoadLabelMapd("image", label_names=SHARED_DATA / folder / f"{names}.json")({"image": path})
    features = ShapeFeaturesd("image")(item)["features"]
    assert (~torch.isnan(features[:, 0])).sum() == organs


@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_orientation_is_read_measured_and_written_alike(label_file, tmp_path, order, flips):
    """All 48 ways to store a volume, LIA and such: the same features in mm and the same voxels in the patient."""
    label, affine = reoriented(small_map(1, fragments=[2]), order, flips)
    transforms = [LoadLabelMapd("image"), LargestComponentsd("image"), ShapeFeaturesd("image")]
    item = Compose(transforms)({"image": label_file(label, affine=affine), "case": "a"})
    expected, _ = reoriented(largest_components(small_map(1, fragments=[2])), order, flips)
    np.testing.assert_array_equal(item["image"][0], expected)
    reference = case_features(largest_components(small_map(1, fragments=[2])), AFFINE, ORGANS)
    same = [n for n, name in enumerate(COLUMNS) if not name.endswith(("_start", "_stop"))]
    np.testing.assert_allclose(item["features"][:, same], reference[:, same], rtol=1e-5, atol=1e-6)
    SaveCleanedd("image", output_dir=tmp_path / "out")(item)
    written = nib.load(tmp_path / "out" / "a_cleaned.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)


def test_features_are_those_of_the_array(label_file):
    item = ShapeFeaturesd("image")(LoadLabelMapd("image")({"image": label_file(small_map(1))}))
    np.testing.assert_array_equal(item["features"], case_features(small_map(1), AFFINE, ORGANS))


def test_unmeasurable_map_is_refused_with_its_name(label_file):
    path = label_file(np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(InputError, match=re.escape(f"{path}: holds no labels")):
        ShapeFeaturesd("image")(LoadLabelMapd("image")({"image": path}))


def test_sheared_map_is_refused_with_its_name(label_file):
    sheared = np.array([[2, 0.5, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    path = label_file(small_map(0), affine=sheared)
    with pytest.raises(InputError, match=re.escape(path) + ".*sheared"):
        ShapeFeaturesd("image")(LoadLabelMapd("image")({"image": path}))


def test_largest_component_of_each_label_agrees_with_scipy():
    label = np.random.default_rng(0).choice(5, (20, 21, 22), p=[0.6, 0.1, 0.1, 0.1, 0.1]).astype(np.uint8)
    label[:8, :8, :8] = 2
    ours = largest_components(label)
    for organ in range(1, 5):
        parts, _ = ndimage.label(label == organ, structure=np.ones((3, 3, 3)))
        largest = np.bincount(parts.ravel())[1:].max()
        kept, count = ndimage.label(ours == organ, structure=np.ones((3, 3, 3)))
        assert count == 1
        assert (kept > 0).sum() == largest
        assert ((ours == organ) <= (label == organ)).all()


def test_largest_component_is_off_unless_enabled(label_file):
    item = LoadLabelMapd("image")({"image": label_file(small_map(0, fragments=[2]))})
    assert LargestComponentsd("image", enabled="false")(item)["image"] is item["image"]
    cleaned = LargestComponentsd("image", enabled="true")(item)["image"]
    np.testing.assert_array_equal(cleaned[0], largest_components(item["image"][0].numpy()))
    assert (cleaned == 2).sum() < (item["image"] == 2).sum()
    np.testing.assert_array_equal(cleaned.affine, item["image"].affine)


def test_cleaned_map_is_written_but_not_that_of_a_dropped_case(label_file, tmp_path):
    item = LoadLabelMapd("pred")({"pred": label_file(small_map(0), affine=OBLIQUE), "case": "a"})
    SaveCleanedd("pred", output_dir=tmp_path / "out")(item)
    written = nib.load(tmp_path / "out" / "a_cleaned.nii.gz")
    assert written.get_data_dtype() == np.uint8
    assert written.shape == small_map(0).shape
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-6)
    item["pred"].fill_(255)
    SaveCleanedd("pred", output_dir=tmp_path / "none")(item)
    assert not (tmp_path / "none").exists()
    SaveCleanedd("pred", output_dir=tmp_path / "out")(item)  # of an earlier run that did not drop the case
    assert not (tmp_path / "out" / "a_cleaned.nii.gz").exists()
