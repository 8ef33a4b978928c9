"""`benchmarks/orientation_gate.py` measures the same on all 48 flips."""

import nibabel as nib
import numpy as np
import pytest

from scripts.data.plausibility import affine_signs, implausible, intensity_kind, orientation_signs
from tests.conftest import SHARED_DATA
from tools.torso import DEFAULT_SPACING_MM, torso_phantom

AFFINE = np.diag([*DEFAULT_SPACING_MM, 1.0])


@pytest.fixture(scope="module")
def torso():
    return torso_phantom(np.random.default_rng(0))[0]


def test_sound_image_gives_no_sign(torso):
    assert implausible(torso, AFFINE, kind="HU") == []


def test_storage_order_does_not_matter(torso):
    """Voxels stored as LPS with an affine that says so are the same image."""
    image = nib.Nifti1Image(torso, AFFINE).as_reoriented([[0, -1], [1, -1], [2, 1]])
    assert orientation_signs(np.asarray(image.dataobj), image.affine) == []


@pytest.mark.parametrize(
    ("axis", "text"),
    [
        (0, "the liver seems to lie on the left: the image may be mirrored"),
        (1, "bones lie in front of the middle: front and back may be exchanged"),
        (2, "lungs seem to lie at the lower end: head and feet may be exchanged"),
    ],
)
def test_flips_of_a_ct_are_told(torso, axis, text):
    assert text in orientation_signs(np.flip(torso, axis), AFFINE)


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ((0, 2, 1), "the body goes on beyond both ends of axis Y, which should be head-feet"),
        ((2, 1, 0), "the body goes on beyond both ends of axis X, which should be head-feet"),
        ((1, 0, 2), "front-back and left-right may be exchanged"),
    ],
)
def test_permuted_axes_are_told(torso, order, text):
    sizes = np.array(DEFAULT_SPACING_MM)[list(order)]
    (sign,) = orientation_signs(torso.transpose(order), np.diag([*sizes, 1.0]))
    assert text in sign


@pytest.mark.parametrize("name", ["ct_torso", "mr_torso"])
def test_real_images_give_no_sign(name):
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    image = nib.load(folder / "image.nii.gz")
    kind = {"ct_torso": "HU", "mr_torso": "MR"}[name]
    assert implausible(image.get_fdata(dtype=np.float32), image.affine, kind=kind) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda v: v, "HU"),
        (lambda v: np.clip(v + 1000, 0, None), "MR"),
        (lambda v: (v - v.mean()) / v.std(), "normalized"),
        (lambda v: np.clip((v + 175) / 425, 0, 1), "normalized"),
        (lambda v: -v, "unknown"),
        (np.zeros_like, "unknown"),
    ],
)
def test_kind_of_intensities(torso, change, kind):
    assert intensity_kind(change(torso.astype(np.float32))) == kind


def test_lost_and_oblique_affines_are_told():
    assert affine_signs(AFFINE) == []
    assert "the affine was probably lost" in affine_signs(np.diag([-1.0, -1, 1, 1]))[0]
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]]
    assert affine_signs(turned @ AFFINE) == ["its axes are turned by 40 degrees against the body"]


def test_empty_image_is_told():
    assert "shows no body" in orientation_signs(np.zeros((20, 20, 20)), AFFINE)
