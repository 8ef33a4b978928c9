import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from scripts.segvol.masks import JoinPromptsd, SavePromptMasksd
from scripts.segvol.prompts import PromptBook

BOOK = PromptBook(text=["liver", "left kidney"])
AFFINE = torch.diag(torch.tensor([2.0, 2, 5, 1], dtype=torch.float64))


def case_of(*channels):
    volumes = torch.tensor(channels, dtype=torch.uint8).reshape(len(channels), 2, 2, 1)
    return {"case": "p1", "pred": MetaTensor(volumes, affine=AFFINE, meta={"case": "p1"})}


def test_prompts_apart_need_the_label_map_alone():
    joined = JoinPromptsd("pred", prompts=BOOK)(case_of([200, 128, 127, 0], [0, 0, 90, 255]))
    assert joined["pred"].flatten().tolist() == [1, 1, 0, 2]
    liver, kidney = joined["found"]
    assert (liver.voxels, liver.shared, kidney.voxels) == (2, 0, 1)
    np.testing.assert_allclose(liver.volume_ml, 2 * 20 / 1000)
    assert liver.confidence == np.mean([200, 128]) / 255
    assert joined["masks"] == {}


def test_prompts_that_overlap_keep_a_mask_each(tmp_path):
    joined = JoinPromptsd("pred", prompts=BOOK)(case_of([200, 130, 0, 0], [210, 129, 0, 200]))
    assert joined["pred"].flatten().tolist() == [2, 1, 0, 2]
    assert [one.shared for one in joined["found"]] == [2, 2]
    SavePromptMasksd("masks", output_dir=tmp_path)(joined)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p1_left_kidney_seg.nii.gz", "p1_liver_seg.nii.gz"]
    mask = nib.load(tmp_path / "p1_left_kidney_seg.nii.gz")
    assert mask.get_fdata().ravel().tolist() == [1, 1, 0, 1]
    np.testing.assert_allclose(mask.affine, AFFINE)


def test_largest_gives_ids_and_confidence():
    joined = JoinPromptsd("pred", prompts=BOOK, overlaps="largest")(case_of([1, 2, 0, 2], [200, 130, 0, 140]))
    assert joined["pred"].flatten().tolist() == [1, 2, 0, 2]
    assert [one.voxels for one in joined["found"]] == [1, 2]
    assert joined["found"][1].confidence == np.mean([130, 140]) / 255
    assert joined["masks"] == {}


def test_prompt_that_finds_nothing_has_no_confidence():
    found = JoinPromptsd("pred", prompts=BOOK)(case_of([0, 0, 0, 0], [0, 0, 0, 200]))["found"][0]
    assert found.voxels == 0
    assert np.isnan(found.confidence)
