import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from scipy.spatial.transform import Rotation

from scripts.common.errors import InputError
from scripts.io.loading import LoadVolumed
from scripts.io.writing import SaveLabelMapd

AFFINE = torch.tensor([[0.0, -2, 0, 5], [3, 0, 0, -7], [0, 0.2, 4, 1], [0, 0, 0, 1]], dtype=torch.float64)


def label_map(shape=(1, 4, 5, 6), affine=AFFINE, **meta):
    return MetaTensor(torch.randint(0, 14, shape, dtype=torch.uint8), affine=affine, meta=meta)


@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (1, 4, 5, 1), (1, 1, 5, 6), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_label_map_is_saved_with_its_shape_and_affine_as_uint8(tmp_path, shape, dtype):
    volume = label_map(shape, case="p.1").to(dtype)
    SaveLabelMapd("pred", output_dir=tmp_path / "new")({"pred": volume})
    saved = nib.load(tmp_path / "new" / "p.1_seg.nii.gz")
    assert saved.shape == shape[1:]
    assert saved.get_data_dtype() == np.uint8
    assert saved.header.get_xyzt_units()[0] == "mm"
    assert (saved.header["qform_code"], saved.header["sform_code"]) == (1, 1)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), volume[0])
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-6)


ORDERS = ["".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)]


@pytest.mark.parametrize("axcodes", ORDERS)
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 1, 3), (1, 1, 2)])
def test_label_map_of_any_axis_order_is_saved_on_its_own_grid(tmp_path, axcodes, shape):
    spacing_mm = np.diag([0.8, 1.5, 4.0, 1.0])
    orientation = nib.orientations.axcodes2ornt(axcodes)
    axes = np.eye(4)
    axes[:3, :3] = 0
    for column, (row, sign) in enumerate(orientation):
        axes[int(row), column] = sign
    for tilt in (np.eye(3), Rotation.from_euler("xyz", [5, -7, 9], degrees=True).as_matrix()):
        affine = np.eye(4)
        affine[:3, :3] = tilt @ (axes @ spacing_mm)[:3, :3]
        affine[:3, 3] = -30.5, 12.25, 400
        assert "".join(nib.aff2axcodes(affine)) == axcodes
        volume = label_map((1, *shape), torch.from_numpy(affine), case="a")
        SaveLabelMapd("pred", output_dir=tmp_path)({"pred": volume})
        saved = nib.load(tmp_path / "a_seg.nii.gz")
        np.testing.assert_array_equal(np.asarray(saved.dataobj), volume[0])
        np.testing.assert_allclose(saved.affine, affine, atol=1e-4)
        assert saved.get_data_dtype() == np.uint8


def test_saved_label_map_is_read_back_on_the_same_grid(tmp_path):
    volume = label_map(case="a")
    SaveLabelMapd("pred", output_dir=tmp_path)({"pred": volume})
    again = LoadVolumed("label")({"label": str(tmp_path / "a_seg.nii.gz")})["label"]
    torch.testing.assert_close(again.as_tensor(), volume.as_tensor().float())
    torch.testing.assert_close(again.affine, AFFINE, atol=1e-6, rtol=0)


def test_file_is_named_after_the_input_if_there_is_no_case(tmp_path):
    SaveLabelMapd("pred", output_dir=tmp_path)({"pred": label_map(filename_or_obj="/data/x/ct.nii.gz")})
    assert [path.name for path in tmp_path.iterdir()] == ["ct_seg.nii.gz"]


def test_name_of_the_input_is_made_safe(tmp_path):
    SaveLabelMapd("pred", output_dir=tmp_path)({"pred": label_map(filename_or_obj="/data/x/" + "c" * 248 + ".nii")})
    assert len(next(tmp_path.iterdir()).name) < 255


def test_interrupted_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    save = SaveLabelMapd("pred", output_dir=tmp_path)
    save({"pred": label_map(case="a")})
    before = (tmp_path / "a_seg.nii.gz").read_bytes()

    def write_half(header, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(nib.Nifti1Header, "write_to", write_half)
    with pytest.raises(KeyboardInterrupt):
        save({"pred": label_map(case="a")})
    assert [path.name for path in tmp_path.iterdir()] == ["a_seg.nii.gz"]
    assert (tmp_path / "a_seg.nii.gz").read_bytes() == before


def test_full_disk_is_not_reported_as_a_missing_writer(tmp_path, monkeypatch):
    """`monai.transforms.SaveImage` asks to install writer libraries, whatever the error."""

    def fail(header, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Header, "write_to", fail)
    with pytest.raises(InputError, match=r"a_seg\.nii\.gz: cannot be written \(No space left on device\); free space"):
        SaveLabelMapd("pred", output_dir=tmp_path)({"pred": label_map(case="a")})


def test_renumbered_file_leaves_the_data_unchanged(tmp_path):
    volume = label_map(case="a")
    volume[0, 0, 0, :3] = torch.tensor([3, 4, 5], dtype=torch.uint8)
    data = SaveLabelMapd("pred", output_dir=tmp_path, renumber={"3": 4, 4: 3, "5": 5})({"pred": volume})
    saved = np.asarray(nib.load(tmp_path / "a_seg.nii.gz").dataobj)
    assert saved[0, 0, :3].tolist() == [4, 3, 5]
    swapped = {3: 4, 4: 3}
    np.testing.assert_array_equal(saved, np.vectorize(lambda value: swapped.get(value, value))(volume[0].numpy()))
    assert data["pred"] is volume
    assert saved.dtype == np.uint8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 65536], "a: holds class ids from 0 to 65536; label maps are saved with 0 to 65535."),
        ([-1, 3], "a: holds class ids from -1 to 3; label maps are saved with 0 to 65535."),
        ([0, 1.5], "a holds 1.5, not a class id: resample label maps with nearest neighbour."),
    ],
)
def test_values_that_uint16_cannot_hold_are_refused(tmp_path, values, message):
    volume = MetaTensor(torch.tensor(values).reshape(1, 2, 1, 1), meta={"case": "a"})
    with pytest.raises(InputError, match=f"^{message}$"):
        SaveLabelMapd("pred", output_dir=tmp_path)({"pred": volume})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint16, torch.float32])
def test_class_ids_above_255_are_saved_as_uint16(tmp_path, dtype):
    volume = MetaTensor(torch.tensor([0, 256, 65535]).to(dtype).reshape(1, 3, 1, 1), meta={"case": "a"})
    SaveLabelMapd("pred", output_dir=tmp_path)({"pred": volume})
    saved = nib.load(tmp_path / "a_seg.nii.gz")
    assert saved.get_data_dtype() == np.uint16
    assert np.asarray(saved.dataobj).ravel().tolist() == [0, 256, 65535]


def stored_header(kind=nib.Nifti1Image, dtype=np.int16, shape=(4, 5, 6)):
    """Return the header of a file with units, a description, two affines that differ and an intent."""
    header = kind(np.zeros(shape, dtype), AFFINE.numpy(), dtype=dtype).header
    header.set_xyzt_units("mm", "sec")
    header.set_sform(AFFINE.numpy(), code="mni")
    header.set_qform(AFFINE.numpy(), code="aligned")
    header["qoffset_x"] = 99
    header["descrip"] = b"made by hand"
    header.set_intent("label")
    return header


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_file_gets_the_header_that_the_label_map_came_with(tmp_path, kind, dtype, shape, order):
    given = stored_header(kind, dtype, shape).as_byteswapped(order)
    volume = label_map(case="a", nifti_header=given.binaryblock)
    SaveLabelMapd("pred", output_dir=tmp_path)({"pred": volume})
    saved = nib.load(tmp_path / "a_seg.nii.gz")
    assert type(saved) is kind
    np.testing.assert_array_equal(np.asarray(saved.dataobj).reshape(4, 5, 6), volume[0])
    same = set(given.keys()) - {"scl_slope", "scl_inter", "vox_offset", "magic"}
    assert {key: saved.header[key].tolist() for key in same} == {key: given[key].tolist() for key in same}


@pytest.mark.parametrize(("dtype", "written"), [(np.int8, np.uint8), (np.uint8, np.uint16), (np.float32, np.uint16)])
def test_type_of_the_given_file_is_not_used_if_it_cannot_hold_the_class_ids(tmp_path, dtype, written):
    volume = label_map(case="a", nifti_header=stored_header(dtype=dtype).binaryblock).to(torch.int32)
    volume[0, 0, 0, 0] = 200 if dtype is np.int8 else 300
    SaveLabelMapd("pred", output_dir=tmp_path)({"pred": volume})
    saved = nib.load(tmp_path / "a_seg.nii.gz")
    assert saved.get_data_dtype() == written
    np.testing.assert_array_equal(np.asarray(saved.dataobj), volume[0])


def test_header_of_another_grid_is_not_used(tmp_path):
    volume = label_map((1, 4, 5, 3), case="a", nifti_header=stored_header().binaryblock)
    SaveLabelMapd("pred", output_dir=tmp_path)({"pred": volume})
    saved = nib.load(tmp_path / "a_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), volume[0])
    assert saved.header["descrip"] == b""
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-6)


def test_monai_label_can_leave_the_transform_out():
    """It removes `SaveImaged` from the postprocessing, because it saves results itself."""
    assert issubclass(SaveLabelMapd, SaveImaged)
