import itertools
from pathlib import Path

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

    def write_half(image, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(nib, "save", write_half)
    with pytest.raises(KeyboardInterrupt):
        save({"pred": label_map(case="a")})
    assert [path.name for path in tmp_path.iterdir()] == ["a_seg.nii.gz"]
    assert (tmp_path / "a_seg.nii.gz").read_bytes() == before


def test_full_disk_is_not_reported_as_a_missing_writer(tmp_path, monkeypatch):
    """`monai.transforms.SaveImage` asks to install writer libraries, whatever the error."""

    def fail(image, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fail)
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
        ([0, 256], "a: holds class ids from 0 to 256; label maps are saved with 0 to 255."),
        ([-1, 3], "a: holds class ids from -1 to 3; label maps are saved with 0 to 255."),
        ([0, 1.5], "a holds 1.5, not a class id: resample label maps with nearest neighbour."),
    ],
)
def test_values_that_uint8_cannot_hold_are_refused(tmp_path, values, message):
    volume = MetaTensor(torch.tensor(values).reshape(1, 2, 1, 1), meta={"case": "a"})
    with pytest.raises(InputError, match=f"^{message}$"):
        SaveLabelMapd("pred", output_dir=tmp_path)({"pred": volume})
    assert list(tmp_path.iterdir()) == []


def test_monai_label_can_leave_the_transform_out():
    """It removes `SaveImaged` from the postprocessing, because it saves results itself."""
    assert issubclass(SaveLabelMapd, SaveImaged)
