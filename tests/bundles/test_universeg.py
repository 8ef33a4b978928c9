"""The whole bundle at small size: pictures, volumes, training and evaluation."""

import json
import signal

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Events
from PIL import Image

from scripts.models.universeg import UniverSeg
from scripts.training import stopping
from tests.conftest import TINY_OF, bundle_workflow, message_of, run_bundle
from tests.scripts.io.dicom_files import write_picture
from tests.scripts.models.tiny_networks import saved, state_of
from tests.scripts.universeg.support_files import write_pictures, write_volume

TINY = TINY_OF["universeg"]
INFER, EVALUATE = ["inference.json"], ["inference.json", "evaluate.json"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.manual_seed(0)
    torch.save(UniverSeg(features=TINY["network_def#features"]).state_dict(), path)
    return path


def run(configs, folder, weights, **settings):
    given = {"ckpt_path": str(weights), "output_dir": str(folder / "out"), **TINY}
    run_bundle("universeg", configs, **{**given, **{key: str(value) for key, value in settings.items()}})
    return folder / "out"


def test_folder_of_pictures_is_segmented_on_their_own_grid(tmp_path, weights):
    support = write_pictures(tmp_path / "support", classes=(2, 7))
    images = write_pictures(tmp_path / "in", n=2, shape=(33, 45)) / "images"
    colours = np.asarray(Image.open(images / "p1.png").convert("RGB"))
    Image.fromarray(colours).save(images / "p1.png")
    out = run(INFER, tmp_path, weights, input=images, support=support, entropy="true", masks="true", ensemble="$2")
    for case in ("p0", "p1"):
        labels = np.asarray(Image.open(out / f"{case}_seg.png"))
        assert labels.shape == (33, 45)
        assert set(np.unique(labels)) <= {0, 2, 7}
        assert Image.open(out / f"{case}_entropy.png").size == (45, 33)
        assert (out / f"{case}_preview.png").is_file()
        assert {path.stem for path in (out / f"{case}_masks").iterdir()} == {"2_class 2", "7_class 7"}
    sizes = pd.read_csv(out / "sizes.csv")
    assert sizes["case"].tolist() == ["p0", "p0", "p1", "p1"]
    assert sizes["class"].tolist() == ["class 2", "class 7"] * 2
    assert sizes.loc[0, "pixels"] == (np.asarray(Image.open(out / "p0_seg.png")) == 2).sum()
    assert sizes[["area_mm2", "volume_ml"]].isna().all(axis=None)
    assert {"p0", "p1"} == set(json.loads((out / "run.json").read_text())["runs"][0]["cases"])


def test_dicom_picture_is_segmented_as_the_same_png_and_a_sweep_by_its_frames(tmp_path, weights):
    support = write_pictures(tmp_path / "support", classes=(1,))
    images = write_pictures(tmp_path / "in", n=1, shape=(33, 45)) / "images"
    pixels = np.asarray(Image.open(images / "p0.png"))
    write_picture(images / "xray.dcm", pixels, Modality="XC", PixelSpacing=[0.5, 0.4])
    write_picture(images / "sweep.dcm", np.stack([pixels] * 2), frames=2)
    out = run(INFER, tmp_path, weights, input=images, support=support, entropy="true")
    plain, xray = (np.asarray(Image.open(out / f"{name}_seg.png")) for name in ("p0", "xray"))
    np.testing.assert_array_equal(xray, plain)
    sweep = np.asarray(nib.load(out / "sweep_seg.nii.gz").dataobj)
    assert sweep.shape == (45, 33, 2)
    assert np.mean(plain != sweep[..., 0].T) < 1e-2
    sizes = pd.read_csv(out / "sizes.csv", index_col="case")
    assert sizes.loc["xray", "area_mm2"] == pytest.approx(plain.sum() * 0.2)
    assert sizes.loc[["p0", "sweep"], ["area_mm2", "volume_ml"]].isna().all(axis=None)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_labels_of_a_few_slices_are_propagated_to_the_volume(tmp_path, weights, plane):
    folder, image, _ = write_volume(tmp_path / "support", labelled=(1, 4))
    affine = nib.affines.from_matvec(np.array([[0.0, 0, 3], [2, 0.3, 0], [-0.3, 2, 0]]), [5, 6, 7])  # oblique, not RAS
    for path in (tmp_path / "support").rglob("*.nii.gz"):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), affine), path)
    out = run(INFER, tmp_path, weights, input=image, support=folder, support_choice="nearest", plane=plane, gif="true")
    found = nib.load(out / "scan_seg.nii.gz")
    assert found.shape == (20, 24, 6)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert (out / "scan.gif").is_file()
    assert pd.read_csv(out / "sizes.csv")["volume_ml"].notna().all()


def test_flat_nifti_gets_a_label_map_and_an_area(tmp_path, weights):
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((9, 14), dtype=np.float32), np.diag([2.0, 3, 1, 1])),
        tmp_path / "a.nii",
    )
    out = run(INFER, tmp_path, weights, input=tmp_path / "a.nii", support=write_pictures(tmp_path / "support"))
    found = nib.load(out / "a_seg.nii.gz")
    assert found.shape == (9, 14, 1)
    row = pd.read_csv(out / "sizes.csv").iloc[0]
    assert row["area_mm2"] == row["pixels"] * 6


def test_class_is_the_one_of_the_largest_restored_probability(tmp_path, weights):
    """By MONAI's inverse of all transforms."""
    from monai.data import MetaTensor
    from monai.transforms import Invertd

    support = write_pictures(tmp_path / "support", classes=(1, 2))
    image = write_pictures(tmp_path / "in", n=1, shape=(33, 45)) / "images" / "p0.png"
    out = run(INFER, tmp_path, weights, input=image, support=support)
    settings = {**TINY, "support": str(support), "input": str(image), "output_dir": str(tmp_path / "out")}
    workflow = bundle_workflow("universeg", INFER, kind="infer", **settings)
    workflow.initialize()
    workflow.network_def.load_state_dict(torch.load(weights, weights_only=True))
    case = workflow.parser.get_parsed_content("preprocessing")({"image": str(image)})
    with torch.no_grad():
        pred = workflow.inferer(case["image"][None], workflow.network_def.eval())[0]
    inverse = Invertd(
        "pred", orig_keys="image", transform=workflow.parser.get_parsed_content("preprocessing"), nearest_interp=False
    )
    restored = inverse({"image": case["image"], "pred": MetaTensor(pred)})["pred"].as_tensor()
    clear = (restored.topk(2, dim=0).values.diff(dim=0).abs() > 1e-5)[0, ..., 0].T
    labels = np.asarray(Image.open(out / "p0_seg.png"))
    np.testing.assert_array_equal(labels[clear], restored.argmax(0)[..., 0].T[clear])


def test_support_is_evaluated_by_its_size(tmp_path, weights):
    support = write_pictures(tmp_path / "support", n=5)
    out = run(EVALUATE, tmp_path, weights, support=support, input=support / "images", support_sizes="$[1, 4]")
    summary = pd.read_csv(out / "summary.csv")
    assert summary[summary["class"] == "mean"][["support_size", "ensemble"]].to_numpy().tolist() == [
        [1, 1],
        [1, 5],
        [4, 1],
        [4, 5],
    ]
    assert (out / "support_size.png").is_file()


TRAINING = {"max_epochs": 2, "val_interval": 1, "warmup_epochs": 0, "episodes": 4, "val_episodes": 2, "batch_size": 2}


def test_training_is_repeatable_goes_on_and_fine_tunes(tmp_path, torso_data):
    settings = {**TINY, **TRAINING, "dataset_dir": str(torso_data), "output_dir": str(tmp_path / "runs")}
    for folder in "ab":
        run_bundle("universeg", ["train.json"], **settings, ckpt_dir=str(tmp_path / folder))
    one, other = (torch.load(tmp_path / k / "training_state.ckpt", weights_only=True)["network"] for k in "ab")
    assert all(torch.equal(one[key], other[key]) for key in one)
    run_bundle("universeg", ["train.json"], **{**settings, "max_epochs": 3}, ckpt_dir=str(tmp_path / "b"), resume=True)
    assert torch.load(tmp_path / "b" / "training_state.ckpt", weights_only=True)["epoch"] == 3
    tuned = {**settings, "pretrained": str(tmp_path / "a" / "model.pt"), "ckpt_dir": str(tmp_path / "c")}
    run_bundle("universeg", ["train.json", "finetune.json"], **tuned)
    assert (tmp_path / "c" / "model.pt").is_file()


def test_training_that_a_signal_stopped_amid_an_epoch_goes_on_exactly(tmp_path, torso_data, monkeypatch):
    monkeypatch.setattr(stopping, "is_bundle_run", lambda: True)
    settings = {**TINY, **TRAINING, "episodes": 6, "dataset_dir": str(torso_data), "output_dir": str(tmp_path / "runs")}
    run_bundle("universeg", ["train.json"], **settings, ckpt_dir=str(tmp_path / "whole"))
    stopped = {**settings, "ckpt_dir": str(tmp_path / "stopped")}
    workflow = bundle_workflow("universeg", ["train.json"], kind="train", **stopped)
    workflow.initialize()
    step = Events.ITERATION_STARTED(once=5)
    workflow.trainer.add_event_handler(step, lambda: signal.raise_signal(signal.SIGUSR1))
    workflow.run()
    assert torch.load(tmp_path / "stopped" / "training_state.ckpt", weights_only=True)["iteration"] == 5
    run_bundle("universeg", ["train.json"], **stopped, resume=True)
    one, other = (
        torch.load(tmp_path / k / "training_state.ckpt", weights_only=True)["network"] for k in ("whole", "stopped")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_weights_of_another_network_are_refused_by_one_message(tmp_path, weights):
    support = write_pictures(tmp_path / "support")
    other = saved(tmp_path / "other.pt", state_of())
    message = message_of(run, INFER, tmp_path, other, input=support / "images", support=support)
    assert message.startswith(f"{other}: weights of another network:")


def test_adaptation_is_refused_by_one_message(tmp_path, weights):
    support = write_pictures(tmp_path / "support")
    message = message_of(run, [*INFER, "etta.json"], tmp_path, weights, input=support / "images", support=support)
    assert "UniverSeg has none" in message


def test_support_without_foreground_is_refused_by_one_message(tmp_path, weights):
    support = write_pictures(tmp_path / "support", n=1, classes=())
    message = message_of(run, INFER, tmp_path, weights, input=support / "images", support=support)
    assert message == f"{support}: no support label has foreground; give at least one that has."


def test_a_picture_that_cannot_be_read_fails_alone(tmp_path, weights):
    support = write_pictures(tmp_path / "support", n=2)
    images = write_pictures(tmp_path / "in", n=2) / "images"
    (images / "p0.png").write_bytes(b"no")
    with pytest.raises(SystemExit):
        run(INFER, tmp_path, weights, input=images, support=support)
    assert pd.read_csv(tmp_path / "out" / "failed.csv")["case"].tolist() == ["p0"]
    assert (tmp_path / "out" / "p1_seg.png").is_file()
