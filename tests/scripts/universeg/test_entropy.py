import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from PIL import Image

from scripts.universeg.entropy import SaveEntropyd, binary_entropy
from tests.scripts.universeg.support_files import transform, write_pictures, write_volume

PREPROCESSING = transform()


def case_of(path):
    case = PREPROCESSING({"image": str(path), "case": "p1"})
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(3, *case["image"].shape[1:], generator=generator)
    probabilities[0] = 0.5
    return {**case, "pred": probabilities}


def test_entropy_is_that_of_the_restored_probabilities_on_the_grid_of_the_file(tmp_path):
    _, path, _ = write_volume(tmp_path)
    case = case_of(path)
    SaveEntropyd("pred", orig_keys="image", output_dir=tmp_path)(case)
    saved = nib.load(tmp_path / "p1_entropy.nii.gz")
    assert saved.get_data_dtype() == np.float32
    np.testing.assert_allclose(saved.affine, nib.load(path).affine)
    inverse = Invertd("pred", orig_keys="image", transform=PREPROCESSING, nearest_interp=False)
    restored = inverse({**case, "pred": MetaTensor(case["pred"])})["pred"].as_tensor()
    np.testing.assert_allclose(saved.get_fdata(), binary_entropy(restored[1:]).amax(0), atol=1e-4)


def test_entropy_of_a_picture_is_a_picture(tmp_path):
    case = case_of(write_pictures(tmp_path) / "images" / "p0.png")
    case["pred"][1:] = 0.5
    SaveEntropyd("pred", orig_keys="image", output_dir=tmp_path)(case)
    saved = np.asarray(Image.open(tmp_path / "p1_entropy.png"))
    assert saved.shape == (20, 24)
    assert (saved == 255).all()


@pytest.mark.parametrize("enabled", [False, "false"])
def test_nothing_is_written_unless_wanted(tmp_path, enabled):
    case = case_of(write_pictures(tmp_path / "in") / "images" / "p0.png")
    assert (
        SaveEntropyd("pred", orig_keys="image", output_dir=tmp_path / "out", enabled=enabled)(case).keys()
        == case.keys()
    )
    assert not (tmp_path / "out").exists()


def test_entropy_of_certain_and_even_probabilities():
    assert binary_entropy(torch.tensor([0.0, 1.0, 0.5, 0.11])).tolist() == pytest.approx([0, 0, 1, 0.4999], abs=1e-3)
