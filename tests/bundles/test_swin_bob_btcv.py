"""swin_bob_btcv from cases to label maps, with a tiny network on phantoms."""

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from scripts.common.errors import reason
from scripts.common.grids import GridArray
from tests.conftest import (
    PAPER,
    ROOT,
    SHARED_DATA,
    TINY,
    bundle_workflow,
    command_line,
    run_bundle,
    training_settings,
    weights,
)
from tests.scripts.io.dicom_files import editing
from tests.scripts.io.dicom_readers import rtstruct_masks, seg_labels
from tests.two_ranks import assert_same_weights, train_on_two_ranks

BUNDLE = "swin_bob_btcv"
CONFIGS = ROOT / "bundles" / BUNDLE / "configs"


@pytest.fixture(scope="module")
def trained(torso_data, tmp_path_factory):
    """A run of four epochs, never interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    run_bundle(BUNDLE, ["train.json"], **training_settings(torso_data, folder, max_epochs=4))
    return folder


def infer(trained, source, out, **more):
    ckpt_path = str(trained / "models" / "model.pt")
    settings = {**TINY, "input": str(source), "output_dir": str(out), "ckpt_path": ckpt_path, **more}
    return run_bundle(BUNDLE, ["inference.json"], kind="infer", **settings)


def command(*arguments, **settings):
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *arguments, *command_line(settings)],
        cwd=ROOT / "bundles" / BUNDLE,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


# Training


def test_training_leaves_best_last_and_scalars(trained):
    last = torch.load(trained / "models" / "training_state.ckpt", weights_only=True)
    assert last["epoch"] == 4
    assert last["iteration"] == 8
    assert last["optimizer"]["state"]
    assert last["lr_scheduler"]["last_epoch"] == 4
    assert 0 <= last["best_metric"] <= 1
    assert (trained / "models" / "model.pt").is_file()
    assert list((trained / "runs" / "tensorboard").glob("events.*"))


def test_same_seed_gives_the_same_weights_and_another_seed_others(torso_data, trained, tmp_path):
    for seed, folder in ((0, tmp_path / "same"), (1, tmp_path / "other")):
        settings = training_settings(torso_data, folder, max_epochs=4, seed=seed, val_interval=4)
        run_bundle(BUNDLE, ["train.json"], **settings)
    uninterrupted = weights(trained / "models" / "training_state.ckpt")
    assert_same_weights(weights(tmp_path / "same" / "models" / "training_state.ckpt"), uninterrupted)
    other = weights(tmp_path / "other" / "models" / "training_state.ckpt")
    assert not torch.equal(other["out.conv.conv.weight"], uninterrupted["out.conv.conv.weight"])


def cleaned_data(source, folder, section):
    """A data set of which one label of a section has voxels of 255, as the label filter leaves them."""
    shutil.copytree(source, folder)
    listed = json.loads((folder / "dataset_0.json").read_text())[section][0]["label"]
    image = nib.load(folder / listed)
    voxels = np.asarray(image.dataobj).astype(np.uint8)
    voxels[voxels == 6] = 255
    nib.save(nib.Nifti1Image(voxels, image.affine), folder / listed)
    return folder


def test_labels_that_a_filter_cleaned_are_trained_on(torso_data, tmp_path):
    data = cleaned_data(torso_data, tmp_path / "data", "training")
    settings = training_settings(data, tmp_path, max_epochs=1)
    with pytest.raises(RuntimeError) as error:
        run_bundle(BUNDLE, ["train.json"], **settings)
    assert "label values 255 are outside 0..13" in reason(error.value)
    run_bundle(BUNDLE, ["train.json", "cleaned_labels.json"], **settings)
    trained = weights(tmp_path / "models" / "training_state.ckpt")
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())


def test_validation_labels_may_not_be_ignored(torso_data, tmp_path):
    data = cleaned_data(torso_data, tmp_path / "data", "validation")
    with pytest.raises(RuntimeError) as error:
        run_bundle(BUNDLE, ["train.json", "cleaned_labels.json"], **training_settings(data, tmp_path, max_epochs=1))
    assert "label values 255 are outside 0..13" in reason(error.value)


def test_killed_and_resumed_run_reaches_the_weights_of_an_uninterrupted_one(torso_data, trained, tmp_path):
    settings = training_settings(torso_data, tmp_path, max_epochs=4)
    arguments = ["training", "--config_file", "configs/train.json", *command_line(settings)]
    process = subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", "run", *arguments],
        cwd=ROOT / "bundles" / BUNDLE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last = tmp_path / "models" / "training_state.ckpt"
    while not last.is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(last, weights_only=True)["epoch"] < 4
    run_bundle(BUNDLE, ["train.json"], **settings, resume="true")
    resumed = torch.load(last, weights_only=True)
    uninterrupted = torch.load(trained / "models" / "training_state.ckpt", weights_only=True)
    assert_same_weights(resumed["network"], uninterrupted["network"])
    assert resumed["best_metric"] == uninterrupted["best_metric"]
    assert resumed["lr_scheduler"] == uninterrupted["lr_scheduler"]


def test_training_that_a_signal_stopped_exits_with_0_and_goes_on_exactly(torso_data, trained, tmp_path):
    settings = training_settings(torso_data, tmp_path, max_epochs=4, num_workers=1)
    arguments = ["training", "--config_file", "configs/train.json", *command_line(settings)]
    program = [sys.executable, "-m", "monai.bundle", "run", *arguments]
    process = subprocess.Popen(program, cwd=ROOT / "bundles" / BUNDLE, stderr=subprocess.PIPE, text=True)
    last = tmp_path / "models" / "training_state.ckpt"
    while not last.is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    assert torch.load(last, weights_only=True)["iteration"] < 8
    run_bundle(BUNDLE, ["train.json"], **settings, resume="true")
    uninterrupted = trained / "models" / "training_state.ckpt"
    assert_same_weights(weights(last), weights(uninterrupted))


@pytest.mark.parametrize("value", ["yes", "1", "maybe"])
def test_resume_that_is_neither_true_nor_false_is_refused(torso_data, trained, tmp_path, value):
    """Formerly anything but "true" was a fresh run, which overwrote `training_state.ckpt`."""
    shutil.copytree(trained / "models", tmp_path / "models")
    before = (tmp_path / "models" / "training_state.ckpt").read_bytes()
    arguments = command_line(training_settings(torso_data, tmp_path, max_epochs=5))
    code, stderr = command("--config_file", "configs/train.json", *arguments, "--resume", value)
    assert code == 1
    assert re.search(rf"^resume is '?{value}'?: give true or false$", stderr.strip().splitlines()[-1])
    assert (tmp_path / "models" / "training_state.ckpt").read_bytes() == before


def test_mixed_precision_can_be_switched_off_from_the_command_line(torso_data):
    """Formerly `--amp false` gave the text "false", which is true."""
    workflow = bundle_workflow(BUNDLE, ["train.json"], kind="train", dataset_dir=str(torso_data), amp="false", **TINY)
    workflow.initialize()
    assert workflow.trainer.amp is False
    assert workflow.evaluator.amp is False


def test_cases_prepared_on_disk_train_and_evaluate_as_those_in_memory(torso_data, trained, tmp_path):
    on_disk = {"dataset": "store", "cache_dir": str(tmp_path / "cache")}
    settings = training_settings(torso_data, tmp_path, max_epochs=4, val_interval=4, **on_disk)
    run_bundle(BUNDLE, ["train.json"], **settings)
    assert_same_weights(
        weights(tmp_path / "models" / "training_state.ckpt"), weights(trained / "models" / "training_state.ckpt")
    )
    assert len(list((tmp_path / "cache").rglob("*.pt"))) == 3
    settings["ckpt_path"] = str(trained / "models" / "model.pt")
    for name, more in (("first", {}), ("read", {}), ("plain", {"dataset": "plain"})):
        folder = {"output_dir": str(tmp_path / name)}
        run_bundle(BUNDLE, ["train.json", "evaluate.json"], kind="train", **{**settings, **folder, **more})
    assert len(list((tmp_path / "cache").rglob("*.pt"))) == 4, "the image alone is prepared for evaluation, once"
    maps = [nib.load(tmp_path / name / "torso_002_seg.nii.gz").get_fdata() for name in ("first", "read", "plain")]
    assert all(np.array_equal(label_map, maps[0]) for label_map in maps)
    assert len({(tmp_path / name / "scores.csv").read_bytes() for name in ("first", "read", "plain")}) == 1


def test_store_that_was_built_ahead_is_what_the_training_reads(torso_data, tmp_path, caplog):
    settings = training_settings(torso_data, tmp_path, cache_dir=str(tmp_path / "cache"), max_epochs=1)
    run_bundle(BUNDLE, ["train.json"], run_id="build_store", **settings)
    with caplog.at_level("INFO", logger="scripts.data.datasets"):
        run_bundle(BUNDLE, ["train.json"], dataset="store", store_mmap="true", **settings)
    assert "2 of 2 cases are prepared already" in caplog.text
    assert "1 of 1 cases are prepared already" in caplog.text
    assert (tmp_path / "models" / "model.pt").is_file()


def test_fine_tuning_starts_from_the_given_weights(torso_data, trained, tmp_path, capfd):
    pretrained = str(trained / "models" / "model.pt")
    settings = training_settings(torso_data, tmp_path, max_epochs=1, pretrained=pretrained, learning_rate=0.0)
    run_bundle(BUNDLE, ["train.json"], **settings)
    tuned, given = weights(tmp_path / "models" / "training_state.ckpt"), weights(Path(pretrained))
    assert_same_weights({name: tuned[name] for name in given}, given)
    assert re.search(r"training: 100%\|.* 2/2 .*epoch=1/1, loss=", capfd.readouterr().err), "no progress bar"


def test_mlflow_tracks_loss_and_metric(torso_data, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    settings = training_settings(torso_data, tmp_path, max_epochs=1)
    run_bundle(BUNDLE, ["train.json"], **settings, tracking="mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlruns.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {"train_loss", "val_mean_dice"} <= {name for run in runs for name in run.data.metrics}


def test_two_ranks_hold_the_same_weights_and_score_the_whole_validation_set(torso_data, tmp_path):
    datalist = json.loads((torso_data / "dataset_0.json").read_text())
    datalist["validation"] += [{"image": item["image"], "label": item["label"]} for item in datalist["test"]]
    datalist["test"] = []
    (torso_data / "two_validation.json").write_text(json.dumps(datalist))
    settings = training_settings(torso_data, tmp_path, max_epochs=2, datalist_file="two_validation.json")
    ranks = train_on_two_ranks(BUNDLE, tmp_path, **settings)
    assert_same_weights(ranks[0]["network"], ranks[1]["network"])
    assert ranks[0]["metrics"] == ranks[1]["metrics"]
    alone = training_settings(torso_data, tmp_path / "alone", max_epochs=1, datalist_file="two_validation.json")
    alone["pretrained"], alone["learning_rate"] = str(tmp_path / "models" / "training_state.ckpt"), 0.0
    one = run_bundle(BUNDLE, ["train.json"], kind="train", **alone).evaluator.state.metrics["val_mean_dice"]
    assert ranks[0]["metrics"]["val_mean_dice"] == pytest.approx(one, abs=1e-4)


def test_federated_client_trains_and_evaluates_the_weights_that_it_is_given(torso_data, trained, tmp_path):
    settings = training_settings(torso_data, tmp_path)
    client = MonaiAlgo(
        bundle_root=str(ROOT / "bundles" / BUNDLE),
        train_kwargs=dict(settings),
        eval_kwargs=dict(settings),
        local_epochs=1,
    )
    client.initialize(extra={ExtraItems.CLIENT_NAME: "site 1", ExtraItems.APP_ROOT: str(tmp_path)})
    given = ExchangeObject(weights=weights(trained / "models" / "model.pt"))
    metrics = client.evaluate(given).metrics
    client.train(given)
    assert metrics["mean_dice"] >= 0
    updated = client.get_weights().weights
    assert updated.keys() == given.weights.keys()
    assert any(not torch.equal(updated[name], given.weights[name]) for name in updated)


# Evaluation


def test_evaluation_scores_the_saved_geometry(torso_data, trained, tmp_path):
    settings = training_settings(torso_data, tmp_path, ckpt_path=str(trained / "models" / "model.pt"))
    workflow = run_bundle(BUNDLE, ["train.json", "evaluate.json"], kind="train", **settings, eval_split="test")
    scores = pd.read_csv(tmp_path / "runs" / "scores.csv")
    assert set(scores["case"]) == {"torso_003"}
    assert len(scores) == 13
    pred = np.asarray(nib.load(tmp_path / "runs" / "torso_003_seg.nii.gz").dataobj)
    label = np.asarray(nib.load(torso_data / "labelsTs" / "torso_003.nii.gz").dataobj)
    for row in scores.itertuples():
        a, b = pred == row.class_id, label == row.class_id
        assert row.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-6)
    summary = pd.read_csv(tmp_path / "runs" / "summary.csv")
    assert workflow.evaluator.state.metrics["mean_dice"] == pytest.approx(scores["dice"].mean(), abs=1e-5)
    assert list(summary["organ"])[-1] == "mean"


# Inference


@pytest.fixture(scope="module")
def segmented(torso_data, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("segmented")
    infer(trained, torso_data / "dataset_0.json", out, gif="true")
    return out


def test_label_map_lies_on_the_grid_of_the_input(torso_data, segmented):
    image = nib.load(torso_data / "imagesTs" / "torso_003.nii.gz")
    pred = nib.load(segmented / "torso_003_seg.nii.gz")
    assert np.abs(image.affine[:3, :3] / image.header.get_zooms()).max(axis=0).min() < 0.999, "not oblique"
    assert nib.aff2axcodes(image.affine) != ("R", "A", "S")
    assert pred.shape == image.shape
    assert pred.get_data_dtype() == np.uint8
    np.testing.assert_allclose(pred.affine, image.affine, atol=1e-4)
    assert set(np.unique(pred.dataobj)) <= set(range(14))


def test_volumes_are_those_of_the_label_map(segmented):
    volumes = pd.read_csv(segmented / "volumes.csv", index_col="case")
    pred = nib.load(segmented / "torso_003_seg.nii.gz")
    voxel_ml = abs(np.linalg.det(pred.affine[:3, :3])) / 1000
    assert len(volumes.columns) == 13
    assert volumes.loc["torso_003", "liver"] == pytest.approx(
        (np.asarray(pred.dataobj) == 6).sum() * voxel_ml, abs=1e-3
    )
    organs = pd.read_csv(segmented / "organs.csv")
    one = organs[organs["case"] == "torso_003"].set_index("organ")
    assert one["volume_ml"].to_dict() == pytest.approx(volumes.loc["torso_003", one.index].to_dict())
    assert list(one.columns) == ["case", "volume_ml", "absent", "cut"]
    assert (one["absent"] == (one["volume_ml"] == 0)).all()


def test_chosen_organs_alone_are_saved_and_measured(torso_data, trained, segmented, tmp_path):
    infer(trained, torso_data / "imagesTs" / "torso_003.nii.gz", tmp_path, roi_subset=["liver", "spleen"])
    name = "torso_003_seg.nii.gz"
    chosen, everything = (np.asarray(nib.load(folder / name).dataobj) for folder in (tmp_path, segmented))
    np.testing.assert_array_equal(chosen, np.where(np.isin(everything, [1, 6]), everything, 0))
    volumes, all_volumes = (pd.read_csv(folder / "volumes.csv", index_col="case") for folder in (tmp_path, segmented))
    assert list(volumes.drop(columns="source", errors="ignore")) == ["spleen", "liver"]
    assert volumes.loc["torso_003", "liver"] == all_volumes.loc["torso_003", "liver"]
    assert pd.read_csv(tmp_path / "organs.csv")["organ"].tolist() == ["spleen", "liver"]


def test_percentiles_in_a_cohort_stand_beside_the_volumes(torso_data, trained, label_data, tmp_path):
    fit = {"dataset_dir": str(label_data), "ckpt_dir": str(tmp_path / "fit"), "output_dir": str(tmp_path / "qc")}
    run_bundle("solf_filter", ["train.json"], **fit, **PAPER, workers=0, qc="false", epsilon_percent=20)
    source = torso_data / "imagesTs" / "torso_003.nii.gz"
    infer(trained, source, tmp_path / "out", solf_reference=str(tmp_path / "fit" / "model.pt"))
    organs = pd.read_csv(tmp_path / "out" / "organs.csv", index_col="organ")
    known = organs.loc[~organs["absent"], "volume_percentile"].dropna()
    assert len(known)
    assert known.between(0, 100).all()
    assert list(organs.columns[-2:]) == ["sphericity_percentile", "eccentricity_percentile"]


def test_unknown_organ_is_refused_with_the_nearest(torso_data, trained, tmp_path):
    with pytest.raises(RuntimeError) as error:
        infer(trained, torso_data / "imagesTs", tmp_path, roi_subset=["lver"])
    assert "roi_subset names 'lver', which is not a class; did you mean 'liver'?" in reason(error.value)


def test_preview_and_gif_are_drawn(segmented):
    names = {path.name for path in segmented.iterdir()}
    assert {"torso_003_preview.png", "torso_003.gif"} <= names
    assert not any(name.startswith(".tmp") for name in names)


def test_a_damaged_file_fails_its_case_and_sets_the_exit_code(torso_data, trained, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(torso_data / "imagesTs" / "torso_003.nii.gz", folder / "b_good.nii.gz")
    (folder / "a_truncated.nii.gz").write_bytes((folder / "b_good.nii.gz").read_bytes()[:2000])
    settings = {
        **TINY,
        "input": str(folder),
        "output_dir": str(tmp_path / "out"),
        "ckpt_path": str(trained / "models" / "model.pt"),
    }
    code, stderr = command("--config_file", "configs/inference.json", **settings)
    assert code == 1
    assert "1 of 2 cases failed:" in stderr
    assert re.search(r"cases: 100%\|.*2/2 .*case", stderr), "no bar of the cases"
    assert re.search(r"100%\|.* 1/1 \[", stderr), "no bar of the windows"
    assert "a_truncated.nii.gz: cannot be read" in stderr.strip().splitlines()[-1]
    assert (tmp_path / "out" / "b_good_seg.nii.gz").is_file()
    failed = pd.read_csv(tmp_path / "out" / "failed.csv")
    assert list(failed["case"]) == ["a_truncated"]
    assert "copy or export it again" in failed["reason"][0]


def test_dicom_series_is_segmented_on_its_own_grid(trained, tmp_path):
    series = SHARED_DATA / "ct_dicom"
    if not series.is_dir():
        pytest.skip(f"{series} is absent")
    infer(trained, series, tmp_path)
    pred = nib.load(tmp_path / "ct_dicom_seg.nii.gz")
    assert pred.shape == (512, 512, 20)
    np.testing.assert_allclose(np.sort(pred.header.get_zooms()), [0.9765625, 0.9765625, 2.0], atol=1e-4)


@pytest.mark.parametrize("output_format", ["dicomseg", "rtstruct"])
def test_dicom_results_of_a_real_series_hold_the_voxels_of_the_nifti_file(trained, series, tmp_path, output_format):
    editing(None, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4")(series)
    infer(trained, series, tmp_path / "out", output_format=output_format)
    assert (tmp_path / "out" / "volumes.csv").is_file()
    image = nib.load(tmp_path / "out" / "series_seg.nii.gz")
    grid = GridArray(np.asarray(image.dataobj), image.affine)
    assert len(np.unique(grid.array)) > 1
    if output_format == "dicomseg":
        np.testing.assert_array_equal(seg_labels(tmp_path / "out" / "series_seg.dcm", grid.affine), grid.array)
    else:
        masks = rtstruct_masks(tmp_path / "out" / "series_rtstruct.dcm", grid.grid)
        for class_id, mask in enumerate(masks.values(), start=1):
            np.testing.assert_array_equal(mask, grid.array == class_id)


def test_dicom_result_of_nifti_input_is_refused_before_the_first_case(torso_data, trained, tmp_path):
    said = refusal(infer, trained, torso_data / "imagesTs", tmp_path / "out", output_format="dicomseg")
    assert "output_format dicomseg needs DICOM series, but " in said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_four_parts_alone_give_the_label_map_of_the_bundle(torso_data, trained, segmented, tmp_path):
    """MONAI Label and Deploy parse these four without the metadata and put the path beside the image."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser.update({**TINY, "output_dir": str(tmp_path)})
    network, preprocessing, inferer, postprocessing = (
        parser.get_parsed_content(part) for part in ("network_def", "preprocessing", "inferer", "postprocessing")
    )
    network.load_state_dict(weights(trained / "models" / "model.pt"))
    path = str(torso_data / "imagesTs" / "torso_003.nii.gz")
    data = preprocessing({"image": path, "image_path": path})
    assert data["image_path"] == path
    with torch.no_grad():
        data["pred"] = inferer(list_data_collate([data])["image"], network.eval())[0]
    data = postprocessing(data)
    expected = nib.load(segmented / "torso_003_seg.nii.gz")
    assert data["pred"].shape == (1, *expected.shape)
    np.testing.assert_array_equal(np.asarray(data["pred"])[0], np.asarray(expected.dataobj))
    np.testing.assert_allclose(data["pred"].affine, expected.affine, atol=1e-4)


# Bad input


def nifti(path, array, affine=None):
    nib.save(nib.Nifti1Image(np.asarray(array, dtype=np.float32), np.eye(4) if affine is None else affine), path)
    return path


def zero_spacing(path):
    """Write what nibabel refuses to write: 0 mm along the first axis."""
    header = bytearray(nib.Nifti1Image(np.random.rand(4, 4, 4).astype(np.float32), np.eye(4)).to_bytes())
    for offset in (80, 280):  # pixdim[1] and srow_x[0]
        header[offset : offset + 4] = bytes(4)
    path.write_bytes(gzip.compress(header))


def refusal(run, *arguments, **settings):
    """Return what the person at the terminal reads."""
    with pytest.raises((RuntimeError, ValueError, FileNotFoundError)) as caught:
        run(*arguments, **settings)
    return reason(caught.value)


BAD_IMAGES = {
    "empty file": (lambda p: p.write_bytes(b""), "cannot be read"),
    "4-D": (lambda p: nifti(p, np.random.rand(4, 4, 4, 2)), r"has shape \(4, 4, 4, 2\), need \(X, Y, Z\)"),
    "NaN": (lambda p: nifti(p, np.full((4, 4, 4), np.nan)), "holds NaN or infinite voxels"),
    "constant": (lambda p: nifti(p, np.ones((4, 4, 4))), "is constant, every voxel is 1; this is not an image"),
    "air alone": (lambda p: nifti(p, -1000 + np.random.rand(9, 9, 9)), "nothing is left after preprocessing"),
    "absurd spacing": (
        lambda p: nifti(p, np.random.rand(4, 4, 4), np.diag([900, 1, 1, 1])),
        r"voxel spacing \(900.0, 1.0, 1.0\) mm is outside",
    ),
    "zero spacing": (zero_spacing, r"voxel spacing \(0.0, 1.0, 1.0\) mm is outside"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_image_is_refused_with_its_path_and_nothing_is_written(kind, trained, tmp_path, capfd):
    write, message = BAD_IMAGES[kind]
    source = tmp_path / "case.nii.gz"
    write(source)
    with pytest.raises(SystemExit, match=rf"1 of 1 cases failed:\n  case: .*case.nii.gz: {message}"):
        infer(trained, source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "failed.csv",
        "organs.csv",
        "run.json",
        "volumes.csv",
    }
    assert len((tmp_path / "out" / "volumes.csv").read_text().splitlines()) == 1, "more than the head of the table"


def test_missing_input_is_named(trained, tmp_path):
    code, stderr = command("--config_file", "configs/inference.json", input=str(tmp_path / "none"))
    assert code == 1
    assert stderr.strip().splitlines()[-1] == (
        f"error: {tmp_path}/none: no such file or folder; give a NIfTI file, a folder or a datalist."
    )


def test_missing_weights_end_the_run_before_the_first_case(torso_data, tmp_path):
    missing = str(tmp_path / "nowhere.pt")
    said = refusal(infer, tmp_path, torso_data / "imagesTs", tmp_path / "out", ckpt_path=missing)
    assert said == f"{missing}: no such file: give the path of the weights."
    assert not list((tmp_path / "out").iterdir())


def test_weights_of_another_network_are_refused(torso_data, trained, tmp_path):
    more = {"network_def#feature_size": 24}
    said = refusal(infer, trained, torso_data / "imagesTs", tmp_path / "out", **more)
    assert "model.pt: weights of another network: " in said
    assert not list((tmp_path / "out").iterdir())


def test_output_folder_that_cannot_be_written_ends_the_run_at_once(torso_data, trained, tmp_path):
    (tmp_path / "file").touch()
    said = refusal(infer, trained, torso_data / "imagesTs", tmp_path / "file" / "out")
    assert said == f"{tmp_path}/file/out: cannot be written (Not a directory); set another output folder"


def refused_training(data, tmp_path, **more):
    settings = training_settings(data, tmp_path / "run", **more)
    said = refusal(run_bundle, BUNDLE, ["train.json"], **settings)
    assert not (tmp_path / "run" / "models").exists()
    return said


def test_dataset_of_another_kind_is_refused(torso_data, tmp_path):
    said = refused_training(torso_data, tmp_path, dataset="disk")
    assert said.endswith("dataset is 'disk': give cache (memory), store (files in cache_dir) or plain.")


def test_no_validation_cases_end_the_run_before_the_first_epoch(torso_data, tmp_path):
    datalist = json.loads((torso_data / "dataset_0.json").read_text())
    (torso_data / "no_validation.json").write_text(json.dumps({**datalist, "validation": []}))
    said = refused_training(torso_data, tmp_path, datalist_file="no_validation.json")
    assert "no_validation.json: no validation cases; list some" in said


def test_all_faults_of_a_data_set_are_listed_before_the_first_epoch(torso_data, tmp_path):
    shutil.copytree(torso_data, tmp_path / "data")
    labels = tmp_path / "data" / "labelsTr"
    label = nib.load(labels / "torso_001.nii.gz")
    array = np.asarray(label.dataobj).copy()
    array[0, 0, 0] = 77
    nib.save(nib.Nifti1Image(array, label.affine), labels / "torso_001.nii.gz")
    (labels / "torso_000.nii.gz").unlink()
    said = refused_training(tmp_path / "data", tmp_path)
    assert "torso_001.nii.gz: label values 77 are outside 0..13" in said
    assert "torso_000.nii.gz" in said


def test_resume_without_a_checkpoint_is_refused(torso_data, tmp_path):
    said = refused_training(torso_data, tmp_path, resume="true")
    assert said.endswith("training_state.ckpt: no checkpoint to resume from: set resume to false.")
