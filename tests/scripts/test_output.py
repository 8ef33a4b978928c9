from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.output import SaveLabelMapd

AFFINE = torch.tensor([[0.0, -2, 0, 5], [3, 0, 0, -7], [0, 0.2, 4, 1], [0, 0, 0, 1]], dtype=torch.float64)


def label_map(shape=(1, 4, 5, 6), **meta):
    return MetaTensor(torch.randint(0, 14, shape, dtype=torch.uint8), affine=AFFINE, meta=meta)


@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (1, 4, 5, 1), (1, 1, 1, 1)])
def test_label_map_is_saved_as_it_is(tmp_path, shape):
    volume = label_map(shape, case="p.1")
    SaveLabelMapd("pred", output_dir=tmp_path / "new")({"pred": volume})
    saved = nib.load(tmp_path / "new" / "p.1_seg.nii.gz")
    assert saved.shape == shape[1:]
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(saved.dataobj), volume[0])
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-6)


def test_without_a_case_the_file_names_the_output(tmp_path):
    SaveLabelMapd("pred", output_dir=tmp_path)({"pred": label_map(filename_or_obj="/data/x/ct.nii.gz")})
    assert [path.name for path in tmp_path.iterdir()] == ["ct_seg.nii.gz"]


def test_interrupted_write_leaves_the_old_file_whole_and_no_other(tmp_path, monkeypatch):
    save = SaveLabelMapd("pred", output_dir=tmp_path)
    save({"pred": label_map(case="a")})
    before = (tmp_path / "a_seg.nii.gz").read_bytes()

    def half_written(image, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(nib, "save", half_written)
    with pytest.raises(KeyboardInterrupt):
        save({"pred": label_map(case="a")})
    assert [path.name for path in tmp_path.iterdir()] == ["a_seg.nii.gz"]
    assert (tmp_path / "a_seg.nii.gz").read_bytes() == before


def test_renumbered_file_leaves_the_label_map_as_it_was(tmp_path):
    volume = label_map(case="a")
    volume[0, 0, 0, :3] = torch.tensor([3, 4, 5], dtype=torch.uint8)
    data = SaveLabelMapd("pred", output_dir=tmp_path, renumber={"3": 4, 4: 3, "5": 5})({"pred": volume})
    saved = np.asarray(nib.load(tmp_path / "a_seg.nii.gz").dataobj)
    assert saved[0, 0, :3].tolist() == [4, 3, 5]
    swapped = {3: 4, 4: 3}
    np.testing.assert_array_equal(saved, np.vectorize(lambda value: swapped.get(value, value))(volume[0].numpy()))
    assert data["pred"] is volume
    assert saved.dtype == np.uint8
