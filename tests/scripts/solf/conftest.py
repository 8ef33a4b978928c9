"""Small label maps of three organs, and a filter that was fitted to them."""

import json

import nibabel as nib
import numpy as np
import pytest

from scripts.labels import ORGANS
from scripts.solf.fitting import fit_thresholds
from scripts.solf.tables import case_features, cohort_table

AFFINE = np.diag([4.0, 4.0, 5.0, 1.0])
SHAPE = (30, 24, 28)
_CENTRES = {66: (15, 12, 14), 2: (20, 12, 14), 3: (9, 12, 14)}
_RADII = {66: (13, 10, 12), 2: (3, 2.6, 4), 3: (3, 2.6, 4)}


def small_map(seed, *, half=(), fragments=()):
    """Paint muscle and two kidneys; `half` lose their upper half, `fragments` are scattered."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.indices(SHAPE), axis=-1)
    label = np.zeros(SHAPE, np.uint8)
    for organ, centre in _CENTRES.items():
        radii = np.array(_RADII[organ]) * np.exp(rng.normal(0, 0.06, 3))
        inside = (((grid - centre) / radii) ** 2).sum(axis=-1) < 1
        if organ in half:
            inside &= grid[..., 2] < centre[2]
        label[inside] = organ
    for organ in fragments:
        label[rng.random(SHAPE) < 0.02] = organ
    return label


@pytest.fixture(scope="session")
def cohort():
    """Arrays of features of 60 cases by name: s05 has half a right kidney, s06 fragments of a left one."""
    maps = {f"s{n:02d}": small_map(n, half=[2] * (n == 5), fragments=[3] * (n == 6)) for n in range(60)}
    return {case: case_features(label, AFFINE, ORGANS) for case, label in maps.items()}


@pytest.fixture(scope="session")
def fitted(cohort):
    """Thresholds of the paper's rule."""
    return fit_thresholds(cohort_table(cohort.items(), ORGANS), organs=ORGANS)


@pytest.fixture
def label_file(tmp_path):
    """Write a label map and return its path."""

    def write(array, name="case.nii.gz", affine=AFFINE):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def json_file(tmp_path):
    """Write a JSON file and return its path."""

    def write(content, name="table.json"):
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    return write
