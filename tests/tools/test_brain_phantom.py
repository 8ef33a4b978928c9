import json

import nibabel as nib
import numpy as np
import pytest

from scripts.brats.prepare import prepare_brats
from scripts.data.datalist import load_datalist
from tools.brain_phantom import TISSUES, brain_phantom, main, write_cohort

COARSE = {"shape": (40, 48, 24), "spacing_mm": (4.0, 4.0, 6.0)}
NECROTIC, EDEMA, ENHANCING = 1, 2, 3


@pytest.fixture(scope="module")
def phantoms():
    return [brain_phantom(np.random.default_rng(seed), **COARSE) for seed in range(4)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("brains"), cases=4, seed=3, **COARSE).parent


def test_sequences_are_int16_and_zero_outside_the_brain(phantoms):
    for images, label in phantoms:
        assert images.shape == (4, *label.shape)
        assert images.dtype == np.int16
        assert label.dtype == np.uint8
        outside = (images == 0).all(axis=0)
        assert 0.3 < outside.mean() < 0.8
        assert (images[:, ~outside] > 0).all()
        assert not label[outside].any()


def test_every_case_holds_core_edema_and_enhancing_tumour_of_a_patients_size(phantoms):
    voxel_ml = np.prod(COARSE["spacing_mm"]) / 1000
    for _, label in phantoms:
        assert np.unique(label).tolist() == [0, 1, 2, 3]
        assert 10 < np.count_nonzero(label) * voxel_ml < 250


def test_core_lies_within_the_rim_within_edema():
    _, label = brain_phantom(np.random.default_rng(1), (80, 96, 72), (2.0, 2.0, 2.0))
    padded = np.pad(label, 1)
    neighbours = [np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (-1, 1)]
    around_core = np.concatenate([n[label == NECROTIC] for n in neighbours])
    assert set(around_core.tolist()) <= {NECROTIC, ENHANCING}
    assert np.isin(np.concatenate([n[label == ENHANCING] for n in neighbours]), [1, 2, 3]).mean() > 0.9


def test_contrasts_are_those_of_glioma(phantoms):
    for images, label in phantoms:
        t1n, t1c, t2w, t2f = images.astype(float)
        assert t1c[label == ENHANCING].mean() > 1.4 * t1c[label == EDEMA].mean()
        assert t1n[label == ENHANCING].mean() < 1.1 * t1n[label == EDEMA].mean()
        assert t2f[label == EDEMA].mean() > 1.3 * t2f[(label == 0) & (t2f > 0)].mean()
        assert t2w[label == NECROTIC].mean() > t2w[label == ENHANCING].mean()


def test_cases_differ(phantoms):
    volumes = [tuple(np.bincount(label.ravel(), minlength=4)[1:]) for _, label in phantoms]
    assert len(set(volumes)) == len(volumes)


def test_files_of_a_case_share_their_grid_which_is_oblique(cohort):
    for folder in sorted(cohort.glob("BraTS-*")):
        files = [nib.load(path) for path in sorted(folder.iterdir())]
        assert len(files) == 5
        for file in files:
            np.testing.assert_array_equal(file.affine, files[0].affine)
            assert file.shape == files[0].shape
        assert nib.affines.obliquity(files[0].affine).max() > np.deg2rad(0.5)


def test_datalist_is_read_by_fold_and_by_prepare_brats(cohort, tmp_path):
    lists = load_datalist(cohort, images_per_case=4, fold=1, label_sets=[[0, 1, 2, 3]])
    assert [len(lists[name]) for name in ("training", "validation", "test")] == [2, 1, 1]
    assert lists["test"][0]["case"] == "BraTS-GLI-00003-000"
    again = json.loads(prepare_brats(cohort, tmp_path / "again.json", folds=4).read_text())
    assert len(again["training"]) == 4


def test_same_seed_gives_the_same_bytes_and_more_cases_keep_the_first(tmp_path, cohort):
    write_cohort(tmp_path, cases=3, seed=3, **COARSE)
    for path in tmp_path.rglob("*.nii.gz"):
        assert path.read_bytes() == (cohort / path.relative_to(tmp_path)).read_bytes()


def test_command_line_writes_a_cohort_and_prints_the_datalist(tmp_path, capsys):
    shape = ["--shape", "40", "48", "24", "--spacing", "4", "4", "6"]
    assert main([str(tmp_path), "--cases", "3", *shape]) == 0
    assert len(list(tmp_path.rglob("*.nii.gz"))) == 15
    assert capsys.readouterr().out.strip() == str(tmp_path / "dataset_0.json")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cases": 2}, "cases=2 is too few for training, validation and test; give at least 3"),
        ({"seed": -1}, "seed=-1 is negative; give 0 or more"),
        ({"shape": (8, 8)}, "shape=(8, 8) is not a grid; give three positive numbers of voxels"),
        ({"shape": (3, 3, 3)}, "leaves no voxel of the labels"),
    ],
)
def test_bad_options_are_named(tmp_path, wrong, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        write_cohort(tmp_path, **wrong)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_air_is_zero_in_all_sequences():
    assert TISSUES["air"].means == (0, 0, 0, 0)
