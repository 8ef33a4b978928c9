"""Small label maps of three organs, and a filter that was fitted to them."""

import json

import nibabel as nib
import numpy as np
import pytest
from monai.data import Dataset
from monai.transforms import Compose

from scripts.common.organs import ORGANS
from scripts.models.weight_files import save
from scripts.solf import transforms, workflow
from scripts.solf.cleaning import CohortCleaner
from scripts.solf.covariates import Covariates, learn_coding
from scripts.solf.filter import LabelFilter
from scripts.solf.fitting import fit_thresholds
from scripts.solf.measuring import case_features
from scripts.solf.tables import cohort_table
from scripts.solf.thresholds import judge
from scripts.solf.transforms import LoadLabelMapd, SaveCleanedd, ShapeFeaturesd

AFFINE = np.diag([4.0, 4.0, 5.0, 1.0])
SHAPE = (30, 24, 28)
_CENTRES = {66: (15, 12, 14), 2: (20, 12, 14), 3: (9, 12, 14)}
_RADII = {66: (13, 10, 12), 2: (3, 2.6, 4), 3: (3, 2.6, 4)}


def small_map(seed, *, half=(), fragments=()):
    """Draw muscle and two kidneys; those in `half` lose their upper half, those in `fragments` are scattered."""
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
    """Thresholds by the paper's rule."""
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


@pytest.fixture
def cohort_dataset(tmp_path):
    """Write the label maps of the first `count` cases of `cohort`, and return them with the bundle's transforms."""

    def make(count, **options):
        folder = tmp_path / "maps"
        folder.mkdir(exist_ok=True)
        cases = []
        for n in range(count):
            path = folder / f"s{n:02d}.nii.gz"
            if not path.exists():
                label = small_map(n, half=[2] * (n == 5), fragments=[3] * (n == 6))
                nib.save(nib.Nifti1Image(label, AFFINE), path)
            cases.append({"case": f"s{n:02d}", "image": str(path)})
        return Dataset(cases, Compose([LoadLabelMapd("image", **options), ShapeFeaturesd("image")]))

    return make


@pytest.fixture
def cleaner(tmp_path, fitted):
    """Make a cleaner with the filter `fitted`, which writes to `tmp_path / "out"`."""

    def make(dataset, *, out="out", rejected="ignore", drop_share=0.3, thresholds=fitted, **options):
        network = LabelFilter(rejected=rejected, drop_share=drop_share)
        network.thresholds = thresholds
        save(network.state_dict(), tmp_path / "model.pt")
        return CohortCleaner(
            network=LabelFilter(rejected=rejected, drop_share=drop_share),
            dataset=dataset,
            postprocessing=SaveCleanedd("pred", output_dir=tmp_path / out),
            ckpt_path=tmp_path / "model.pt",
            output_dir=tmp_path / out,
            **{"workers": 0, **options},
        )

    return make


@pytest.fixture
def measured(monkeypatch):
    """Count the label maps that are measured in this process."""
    calls = []
    original = transforms.features_and_contacts
    monkeypatch.setattr(
        transforms, "features_and_contacts", lambda *args, **named: calls.append(1) or original(*args, **named)
    )
    return calls


@pytest.fixture
def judged(monkeypatch):
    """Make tables of four cases, and count how often the main process derives decisions of one."""
    calls = []
    monkeypatch.setattr(workflow, "_CASES_PER_TABLE", 4)
    monkeypatch.setattr(workflow, "judge", lambda *args: calls.append(1) or judge(*args))
    return calls


@pytest.fixture(scope="session")
def covariates():
    """Ages of the 60 cases of `cohort` but s03, read for a fit; site B has the last ones."""
    rows = {f"s{n:02d}": {"age": str(30 + n), "site": "AB"[n > 39]} for n in range(60) if n != 3}
    return Covariates("cov.csv", rows, learn_coding(list(rows.values()), ["age"]))


@pytest.fixture(scope="session")
def conditional(cohort, covariates):
    """Thresholds of features less what age predicts."""
    rule = {"rule": "mad", "features": ["normalized_volume", "sphericity"], "votes": 1, "mad_factor": 4.0}
    return fit_thresholds(cohort_table(cohort.items(), ORGANS), organs=ORGANS, covariates=covariates, **rule)
