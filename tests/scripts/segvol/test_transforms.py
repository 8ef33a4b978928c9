import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensity

from scripts.common.errors import InputError
from scripts.segvol.transforms import OrientSlicesFirstd, ScaleForegroundd

LPS = torch.diag(torch.tensor([-1.0, -2, 3, 1]))


def volume(affine=LPS):
    return MetaTensor(torch.arange(24.0).reshape(1, 2, 3, 4), affine=affine)


@pytest.mark.parametrize(("orientation", "codes"), [("RAS", "SAR"), ("LPS", "SPL"), ("file", "SPL")])
def test_axes_are_slices_rows_and_columns_of_the_orientation(orientation, codes):
    turn = OrientSlicesFirstd("image", orientation=orientation)
    turned = turn({"image": volume()})["image"]
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    assert turned.shape == (1, 4, 3, 2)
    back = turn.inverse({"image": turned})["image"]
    assert torch.equal(back, volume())
    torch.testing.assert_close(back.affine, volume().affine)


def test_order_of_the_file_is_that_of_its_array_reversed():
    """As the published code, which orients nothing and swaps the first and the last axis."""
    turned = OrientSlicesFirstd("image", orientation="file")({"image": volume()})["image"]
    assert torch.equal(turned.as_tensor(), volume().as_tensor().transpose(1, 3))


@pytest.mark.parametrize("orientation", ["ras", "RA", "RLS", "", "RASA"])
def test_other_orientations_are_refused(orientation):
    with pytest.raises(InputError, match=f"orientation is '{orientation}': give three letters such as RAS"):
        OrientSlicesFirstd("image", orientation=orientation)


def test_intensities_are_those_of_the_published_steps():
    """Clip to percentiles of the foreground, normalize by its mean and deviation, scale to 0..1."""
    image = torch.randn(1, 12, 13, 14, generator=torch.Generator().manual_seed(0)) * 300 - 200
    image[0, :4] = -1000
    voxels = image[image > image.mean()].numpy().astype(np.float64)
    low, high = np.percentile(voxels, [0.05, 99.95])
    steps = (image.clamp(low, high) - voxels.mean()) / voxels.std()
    expected = ScaleIntensity(0.0, 1.0)(steps)
    found = ScaleForegroundd("image")({"image": image})["image"]
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-5)


def test_mr_is_warned_of_and_ct_is_not(caplog):
    mr = torch.rand(1, 12, 12, 12) * 800
    mr[:, 6:] = 0
    ct = torch.cat([torch.full((1, 6, 12, 12), -1000.0), torch.rand(1, 6, 12, 12) * 300], dim=1)
    ScaleForegroundd("image")({"image": ct})
    assert not caplog.records
    ScaleForegroundd("image")({"image": MetaTensor(mr, meta={"filename_or_obj": "mr.nii.gz"})})
    assert "mr.nii.gz: intensities look like unknown, not CT in HU" in caplog.text or "look like MR" in caplog.text


def test_volume_of_one_value_becomes_0():
    assert not ScaleForegroundd("image")({"image": torch.full((1, 2, 2, 2), 5.0)})["image"].any()
