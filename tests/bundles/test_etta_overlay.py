"""The overlay that adapts to each case, on the bundle and on one of other authors."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.ndimage import gaussian_filter

from scripts.etta.settings import ETTASettings
from scripts.etta.spectrum import FREQUENCIES
from scripts.etta.spectrum_file import NAME, read_spectrum
from tests.conftest import ROOT, TINY, TINY_TRAINING, bundle_workflow, run_bundle

CONFIGS = ROOT / "bundles" / "swin_bob_btcv" / "configs"
WEIGHTS = {"etta_adapt": "weights", "etta#lr": 0.02, "etta#min_entropy_drop": 0, "etta#volume_band": [0, 100]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.manual_seed(0)
    network = bundle_workflow("swin_bob_btcv", ["inference.json"], kind="infer", **TINY)
    network.initialize()
    torch.save(network.network_def.state_dict(), path)
    return str(path)


def segment(configs, data, weights, out, **more):
    settings = {**TINY, "input": str(data / "imagesTs"), "ckpt_path": weights, "output_dir": str(out), **more}
    return run_bundle("swin_bob_btcv", configs, kind="infer", **settings)


def label_map(folder):
    return np.asarray(nib.load(folder / "torso_003_seg.nii.gz").dataobj)


def test_inference_adapts_and_writes_a_table(torso_data, weights, tmp_path):
    workflow = segment(["inference.json", "etta.json"], torso_data, weights, tmp_path, **WEIGHTS)
    table = pd.read_csv(tmp_path / "etta.csv")
    assert table["case"].tolist() == ["torso_003"]
    assert table["accepted"].all(), table["reason"][0]
    state = torch.load(weights, weights_only=True)
    network = workflow.parser.get_parsed_content("network").state_dict()
    assert all(torch.equal(network[name], state[name]) for name in state)


def test_inference_adapts_the_input_by_default_and_the_network_never(torso_data, weights, tmp_path):
    segment(["inference.json"], torso_data, weights, tmp_path / "plain")
    changed = {"etta#guard": False}
    workflow = segment(["inference.json", "etta.json"], torso_data, weights, tmp_path / "etta", **changed)
    (row,) = pd.read_csv(tmp_path / "etta" / "etta.csv").itertuples()
    assert row.accepted
    assert row.candidate.startswith("gamma")
    assert (label_map(tmp_path / "etta") != label_map(tmp_path / "plain")).any()
    state = torch.load(weights, weights_only=True)
    network = workflow.parser.get_parsed_content("network").state_dict()
    assert all(torch.equal(network[name], state[name]) for name in state)


def test_no_steps_do_not_change_the_label_map(torso_data, weights, tmp_path):
    segment(["inference.json"], torso_data, weights, tmp_path / "plain")
    segment(
        ["inference.json", "etta.json"],
        torso_data,
        weights,
        tmp_path / "etta",
        **{"etta_adapt": "weights", "etta#steps": 0},
    )
    np.testing.assert_array_equal(label_map(tmp_path / "etta"), label_map(tmp_path / "plain"))
    assert pd.read_csv(tmp_path / "etta" / "etta.csv")["reason"].tolist() == ["steps is 0"]


def test_evaluation_adapts_and_scores(torso_data, weights, tmp_path):
    settings = {**TINY, **TINY_TRAINING, **WEIGHTS, "dataset_dir": str(torso_data), "ckpt_path": weights}
    settings |= {"output_dir": str(tmp_path), "eval_split": "test"}
    configs = ["train.json", "evaluate.json", "etta_evaluate.json"]
    workflow = run_bundle("swin_bob_btcv", configs, kind="train", **settings)
    assert pd.read_csv(tmp_path / "etta.csv")["case"].tolist() == ["torso_003"]
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 13
    assert {"mean_dice", "etta_accepted"} <= set(workflow.evaluator.state.metrics)


def test_overlays_differ_only_in_the_handlers_that_they_extend():
    one, other = (json.loads((CONFIGS / name).read_text()) for name in ("etta.json", "etta_evaluate.json"))
    assert one.pop("+handlers") == other.pop("+validate#handlers")
    assert one == other


def test_overlay_names_only_what_differs_from_the_defaults_of_the_settings():
    overlay = json.loads((CONFIGS / "etta.json").read_text())
    assert overlay["etta"].keys() == {"_target_", "adapt", "spectrum"}
    assert overlay["etta_adapt"] == ETTASettings().adapt


@pytest.mark.parametrize("bundle", ["swin_bob_btcv", "swin_bob_brats", "swin_bob_pretrain"])
def test_training_writes_the_spectrum_where_overlay_and_metadata_say(bundle):
    names = ("train", "inference", "evaluate", "etta", "etta_evaluate", "metadata")
    configs = {n: json.loads((ROOT / "bundles" / bundle / "configs" / f"{n}.json").read_text()) for n in names}
    folder, name = configs["metadata"]["training_spectrum"].split("/")
    assert name == NAME
    assert configs["train"]["training_spectrum"]["cases"] == "@train#dataset#data"  # MONAI Label has no datalist
    assert configs["train"]["training_spectrum"]["path"] == f"$@ckpt_dir + '/{name}'"
    assert configs["train"]["ckpt_dir"] == f"$@bundle_root + '/{folder}'"
    assert configs["etta"]["etta_spectrum"] == configs["etta_evaluate"]["etta_spectrum"] == "@ckpt_path"
    assert configs["inference"]["ckpt_path"] == f"$@bundle_root + '/{folder}/model.pt'"
    assert configs["evaluate"]["ckpt_path"] == "$@ckpt_dir + '/model.pt'"


def test_spectrum_of_a_training_is_what_the_input_is_filtered_to(torso_data, weights, tmp_path):
    settings = {**TINY, **TINY_TRAINING, "dataset_dir": str(torso_data), "ckpt_dir": str(tmp_path / "models")}
    run_bundle("swin_bob_btcv", ["train.json"], kind="train", run_id="write_spectrum", **settings)
    assert read_spectrum(tmp_path / "models" / NAME).mean.shape == (1, 3, FREQUENCIES)
    blurred = tmp_path / "blurred.nii.gz"
    image = nib.load(next((torso_data / "imagesTs").glob("*.nii.gz")))
    smooth = gaussian_filter(np.asarray(image.dataobj, dtype=np.float32), 1.5)
    nib.save(nib.Nifti1Image(smooth, image.affine), blurred)
    beside = shutil.copy(weights, tmp_path / "models" / "model.pt")
    changed = {"etta#guard": False, "input": str(blurred)}
    segment(["inference.json", "etta.json"], torso_data, beside, tmp_path / "out", **changed)
    (row,) = pd.read_csv(tmp_path / "out" / "etta.csv").itertuples()
    assert row.candidate.split(", ")[-1] == "spectrum"


FOREIGN = {
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cpu')",
    "net": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
        "norm": "batch",
    },
    "files": [],
    "transforms": {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
    "data": {"_target_": "Dataset", "data": "@files", "transform": "@transforms"},
    "loader": {"_target_": "DataLoader", "dataset": "@data", "batch_size": 1},
    "windows": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.25},
    "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@loader",
        "network": "@net",
        "inferer": "@windows",
        "val_handlers": "@handlers",
    },
    "initialize": ["$monai.utils.set_determinism(0)"],
    "run": ["$@evaluator.run()"],
}


def test_overlay_works_on_a_bundle_with_other_names(torso_data, tmp_path):
    (tmp_path / "inference.json").write_text(json.dumps(FOREIGN))
    workflow = ConfigWorkflow(
        config_file=[str(tmp_path / "inference.json"), str(CONFIGS / "etta.json")],
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(tmp_path),
        files=[{"image": str(path)} for path in sorted((torso_data / "imagesTs").glob("*.nii.gz"))],
        etta_spectrum=None,
        **WEIGHTS,
    )
    workflow.initialize()
    workflow.run()
    table = pd.read_csv(tmp_path / "eval" / "etta.csv")
    assert table["case"].tolist() == ["torso_003"]
    assert table["entropy_before"].between(0, 1).all()
    assert workflow.evaluator.state.metrics["etta_seconds"] > 0
