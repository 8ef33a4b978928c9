import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Invertd
from PIL import Image

from scripts.universeg.masks import SaveMasksd
from scripts.universeg.support import SupportSet
from tests.scripts.universeg.support_files import transform, write_pictures, write_volume
from tests.scripts.universeg.test_entropy import PREPROCESSING, case_of


def support(folder):
    """Return a support set of the classes 2 and 7."""
    write_pictures(folder, classes=(2, 7))
    (folder / "labels.json").write_text('{"2": "a/b"}')
    return SupportSet(folder, transform())


def test_masks_are_those_of_the_restored_probabilities_and_overlap(tmp_path):
    _, path, _ = write_volume(tmp_path)
    case = case_of(path)
    SaveMasksd("pred", orig_keys="image", support=support(tmp_path / "s"), output_dir=tmp_path, threshold=0.4)(case)
    saved = [nib.load(tmp_path / "p1_masks" / f"{name}.nii.gz") for name in ("2_a_b", "7_class 7")]
    inverse = Invertd("pred", orig_keys="image", transform=PREPROCESSING, nearest_interp=False)
    restored = inverse({**case, "pred": MetaTensor(case["pred"])})["pred"].as_tensor()[1:].numpy()
    clear = np.abs(restored - 0.4) > 1e-4
    for mask, expected, sure in zip(saved, restored > 0.4, clear, strict=True):
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mask.affine, nib.load(path).affine)
        np.testing.assert_array_equal(np.asarray(mask.dataobj)[sure], expected[sure])
    first, second = (np.asarray(mask.dataobj) > 0 for mask in saved)
    assert (first & second).any()


def test_masks_of_a_picture_are_pictures(tmp_path):
    examples = support(tmp_path / "s")
    case = case_of(tmp_path / "s" / "images" / "p0.png")
    SaveMasksd("pred", orig_keys="image", support=examples, output_dir=tmp_path)(case)
    mask = np.asarray(Image.open(tmp_path / "p1_masks" / "7_class 7.png"))
    assert mask.shape == (20, 24)
    assert set(np.unique(mask)) == {0, 1}
