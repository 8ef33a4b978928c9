"""Archives of phantoms through the front door, and their label maps on the grids that come out."""

import nibabel as nib
import numpy as np
import pytest

from scripts.common.organs import IDS_OF_NAMES
from scripts.ukbb.prepare import main as prepare
from tools.dixon_cohort import MAPS, main
from tools.label_cohort import make_subject


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ukbb")
    main([str(folder), "--subjects", "1"])
    prepare([str(folder / "archives"), str(folder), "--slice_spacing_mm", "6", "--workers", "0"])
    main([str(folder), "--labels"])
    return folder


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_organs_lie_where_the_prepared_image_shows_them(cohort):
    image, truth = (voxels(cohort / name / "1000001_2_0.nii.gz") for name in ("images", "truth"))
    assert image.shape == (*truth.shape, 4)
    fat, water = (image[..., channel].astype(float) for channel in (0, 1))
    for organ, is_fat in {"liver": False, "muscle": False, "subcutaneous_fat": True, "inner_fat": True}.items():
        where = truth == IDS_OF_NAMES[organ]
        assert where.sum() > 1000
        assert ((fat > water) == is_fat)[where].mean() > 0.93, organ


def test_nothing_of_the_body_is_lost(cohort):
    phantom = make_subject(0, 0, error_rate=0.1)
    placed = [voxels(cohort / name / "1000001_2_0.nii.gz") for name in MAPS]
    grid = nib.load(cohort / "truth" / "1000001_2_0.nii.gz")
    for label, given in zip(placed, (phantom.corrupted, phantom.clean), strict=True):
        volumes = [
            np.bincount(maps.ravel(), minlength=73) * abs(np.linalg.det(affine[:3, :3])) / 1000
            for maps, affine in ((label, grid.affine), (given, phantom.affine))
        ]
        np.testing.assert_allclose(volumes[0][1:].sum(), volumes[1][1:].sum(), rtol=0.01)
        large = volumes[1] > 100
        np.testing.assert_allclose(volumes[0][1:][large[1:]], volumes[1][1:][large[1:]], rtol=0.05)
    assert (placed[0] != placed[1]).any()
