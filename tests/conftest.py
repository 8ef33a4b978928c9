"""Small data, a tiny network and what runs a bundle, for all tests."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.common import threads
from scripts.common.errors import InputError, root_cause
from scripts.ultrabones.prepare import prepare_ultrabones
from tools import brain_phantom, dixon_phantom
from tools.label_cohort import make_cohort
from tools.phantom import write_cohort
from tools.ultrasound_phantom import write_cohort as write_ultrasound

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
TINY = {
    "network_def#feature_size": 12,
    "network_def#depths": [1, 1, 1, 1],
    "network_def#window_size": 4,
    "patch_size": [64, 64, 64],
    "spacing_mm": [6.0, 6.0, 6.0],
    "num_workers": 0,
    "sw_batch_size": 1,
}
PAPER = {"rule": "percentile", "features": ["normalized_volume", "sphericity", "eccentricity"], "votes": 2}
TINY_OF = {
    "solf_filter": {"workers": 0, **PAPER, "epsilon_percent": 20},
    "segvol": {
        "text": ["liver"],
        "network_def#spatial_size": [16, 32, 32],
        "network_def#patch_size": [4, 8, 8],
        "network_def#hidden_size": 16,
        "network_def#mlp_dim": 24,
        "network_def#num_layers": 1,
        "network_def#num_heads": 2,
        "network_def#decoder_heads": 2,
        "network_def#decoder_mlp_dim": 12,
        "network_def#text_width": 8,
        "network_def#text_layers": 1,
        "network_def#text_heads": 2,
        "network_def#text_mlp_dim": 12,
        "num_workers": 0,
    },
    "ultrabones": {
        "network_def#blocks": [1, 1, 1, 1],
        "network_def#features": [4, 4, 4, 8],
        "network_def#pyramid_channels": 8,
        "network_def#segmentation_channels": 32,
        "image_size": 64,
        "num_workers": 0,
    },
    "universeg": {"network_def#features": [4, 4], "image_size": 16, "support_size": 2, "num_workers": 0},
}
"""What makes other bundles than those with a Swin UNETR small."""
TINY_TRAINING = {
    "network_def#use_checkpoint": False,
    "crops_per_case": 1,
    "warmup_epochs": 1,
    "val_interval": 1,
}


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    """Sums in the same order here and in the processes that tests start, on machines of any size."""
    os.environ["OMP_NUM_THREADS"] = "2"
    os.environ.update(threads.SETTINGS)  # or each run of a bundle starts twice
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def torso_data(tmp_path_factory):
    """A cohort of four phantoms: two for training, one each for validation and test."""
    return write_cohort(tmp_path_factory.mktemp("torso"), cases=4, seed=3).parent


@pytest.fixture(scope="session")
def ultrasound_data(tmp_path_factory):
    """Frames of five specimens of four donors, with a datalist; the last specimen is for test."""
    root = tmp_path_factory.mktemp("ultrasound")
    write_ultrasound(root, specimens=5, frames=3, size=(82, 96))
    prepare_ultrabones(root, test=[4])
    return root


@pytest.fixture(scope="session")
def label_data(tmp_path_factory):
    """A folder of six label maps, some of whose labels are wrong."""
    return make_cohort(tmp_path_factory.mktemp("labels"), subjects=6, seed=3).labels[0].parent


@pytest.fixture(scope="session")
def brain_data(tmp_path_factory):
    """A cohort of four brains with tumours: three folds, and one for test."""
    folder = tmp_path_factory.mktemp("brains")
    return brain_phantom.write_cohort(folder, cases=4, seed=3, shape=(40, 48, 24), spacing_mm=(4.0, 4.0, 6.0)).parent


@pytest.fixture(scope="session")
def dixon_data(tmp_path_factory):
    """A cohort of four phantoms with four contrasts and some of the 72 organs."""
    folder = tmp_path_factory.mktemp("dixon")
    return dixon_phantom.write_cohort(folder, cases=4, seed=3, shape=(50, 38, 44), spacing_mm=(6.0, 6.0, 6.0)).parent


@pytest.fixture
def real_ct():
    folder = SHARED_DATA / "ct_torso"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture
def series(tmp_path):
    """A writable copy of a CT series of 20 slices, 2 mm apart."""
    source = SHARED_DATA / "ct_dicom"
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    folder = tmp_path / "series"
    folder.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def bundle_workflow(bundle, configs, *, kind=None, run_id="run", **settings):
    """Make the workflow that `python -m monai.bundle run` makes."""
    folder = ROOT / "bundles" / bundle
    return ConfigWorkflow(
        config_file=[str(folder / "configs" / name) for name in configs],
        workflow_type=kind,
        run_id=run_id,
        logging_file=False,
        **{"bundle_root": str(folder), **settings},
    )


def run_bundle(bundle, configs, **settings):
    """Run a bundle as `python -m monai.bundle run` does and return its workflow."""
    workflow = bundle_workflow(bundle, configs, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def message_of(run, *arguments, **settings):
    """Run what must be refused by an `InputError`, and return its message."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (its cause is checked)
        run(*arguments, **settings)
    cause = root_cause(caught.value)
    assert isinstance(cause, InputError)
    return str(cause)


def command_line(settings):
    """Write settings as they are typed."""
    texts = {key: str(value) if isinstance(value, bool) else json.dumps(value) for key, value in settings.items()}
    return [part for key, text in texts.items() for part in (f"--{key}", text.strip('"'))]


def training_settings(data, folder, **more):
    """Settings of a small training on `data` that writes below `folder`."""
    folders = {"ckpt_dir": str(folder / "models"), "output_dir": str(folder / "runs")}
    return {**TINY, **TINY_TRAINING, "dataset_dir": str(data), **folders, **more}


def weights(path):
    """Read the network's weights from any file that a training leaves."""
    content = torch.load(path, weights_only=True)
    return content.get("network", content)
