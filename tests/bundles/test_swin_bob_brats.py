"""swin_bob_brats from four sequences to label maps, with a tiny network on phantoms."""

import json
import logging
import shutil
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from monai.data.utils import set_rnd
from monai.losses import DiceCELoss, DiceLoss

from scripts.brats.regions import BRATS_REGIONS, LABEL_SETS
from scripts.brats.sequences import SEQUENCES
from scripts.common.errors import reason
from scripts.models.convert import convert
from scripts.models.swin_unetr import is_marker
from tests import conftest
from tests.conftest import ROOT, SHARED_DATA, TINY, bundle_workflow, run_bundle, weights

BUNDLE = "swin_bob_brats"
CONFIGS = ROOT / "bundles" / BUNDLE / "configs"
SMALL = {**TINY, "patch_size": [32, 64, 32]}
training_settings = partial(conftest.training_settings, patch_size=SMALL["patch_size"])
CASE = "BraTS-GLI-00003-000"
WILLING = {"etta#guard": False, "etta_adapt": "both"}


@pytest.fixture(scope="module")
def trained(brain_data, tmp_path_factory):
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    run_bundle(BUNDLE, ["train.json"], **training_settings(brain_data, folder, max_epochs=1))
    return folder


def infer(trained, source, out, *overlays, **more):
    ckpt_path = str(trained / "models" / "model.pt")
    settings = {**SMALL, "input": str(source), "output_dir": str(out), "ckpt_path": ckpt_path, **more}
    return run_bundle(BUNDLE, ["inference.json", *overlays], kind="infer", **settings)


def evaluate(trained, data, folder, *overlays, **more):
    settings = training_settings(data, folder, ckpt_path=str(trained / "models" / "model.pt"), **more)
    return run_bundle(BUNDLE, ["train.json", "evaluate.json", *overlays], kind="train", **settings)


def stored(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def older_data(brain_data, tmp_path):
    """The same cases with labels 1, 2, 4."""
    shutil.copytree(brain_data, tmp_path / "older")
    for path in (tmp_path / "older").rglob("*-seg.nii.gz"):
        image = nib.load(path)
        label = stored(path).copy()
        label[label == 3] = 4
        nib.save(nib.Nifti1Image(label, image.affine), path)
    return tmp_path / "older"


# What is stated twice


def test_channels_and_regions_are_those_of_the_scripts():
    data_format = json.loads((CONFIGS / "metadata.json").read_text())["network_data_format"]
    assert tuple(data_format["inputs"]["image"]["channel_def"].values()) == SEQUENCES
    assert data_format["outputs"]["pred"]["num_channels"] == len(BRATS_REGIONS)
    assert {int(key) for key in data_format["outputs"]["pred"]["channel_def"]} == {0, *BRATS_REGIONS["WT"]}
    for name in ("train.json", "inference.json"):
        content = json.loads((CONFIGS / name).read_text())
        assert list(content["regions"].items()) == [(name, list(ids)) for name, ids in BRATS_REGIONS.items()]
    train = json.loads((CONFIGS / "train.json").read_text())
    assert train["datalist"]["label_sets"] == [list(values) for values in LABEL_SETS]


def test_loss_is_dice_plus_binary_cross_entropy():
    parser = ConfigParser(json.loads((CONFIGS / "train.json").read_text()))
    loss = parser.get_parsed_content("loss")
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 3, 8, 8, 8, generator=generator)
    target = (torch.rand(2, 3, 8, 8, 8, generator=generator) < 0.3).float()
    dice = DiceLoss(sigmoid=True, smooth_nr=0, smooth_dr=1e-5)(logits, target)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(loss(logits, target), dice + entropy)
    softmax = DiceCELoss(sigmoid=True, smooth_nr=0, smooth_dr=1e-5)(logits, target) - dice
    assert abs(float(softmax - entropy)) > 0.1, "DiceCELoss would do"


# Training


def test_training_leaves_best_last_and_scalars(trained):
    last = weights(trained / "models" / "training_state.ckpt")
    assert last["swinViT.patch_embed.proj.weight"].shape[1] == 4
    assert last["out.conv.conv.weight"].shape[0] == 3
    state = torch.load(trained / "models" / "training_state.ckpt", weights_only=True)
    assert (state["epoch"], state["iteration"]) == (1, 2)
    assert 0 <= state["best_metric"] <= 1
    assert list((trained / "runs" / "tensorboard").glob("events.*"))


def training_case(data, folder, **more):
    workflow = bundle_workflow(BUNDLE, ["train.json"], kind="train", **training_settings(data, folder, **more))
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("train#dataset")
    set_rnd(dataset, seed=0)
    return dataset[0][0]


def test_older_labels_give_the_same_regions_and_the_log_names_them(
    brain_data, older_data, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("scripts.brats.regions._logged_kinds", set())  # each kind is logged once per process
    newer = training_case(brain_data, tmp_path)
    with caplog.at_level(logging.INFO):
        older = training_case(older_data, tmp_path)
    assert newer["label"].shape == (3, 32, 64, 32)
    assert [int(channel.sum()) > 0 for channel in newer["label"]] == [True] * 3
    assert torch.equal(older["label"], newer["label"])
    assert torch.equal(older["image"], newer["image"])
    assert any("4 enhancing, which is read as 3" in message for message in caplog.messages)


def test_prepared_cases_from_files_are_those_prepared_anew(brain_data, tmp_path):
    kept = {"dataset": "store", "cache_dir": str(tmp_path / "cache")}
    settings = training_settings(brain_data, tmp_path, **kept)
    run_bundle(BUNDLE, ["train.json"], run_id="build_store", **settings)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.pt")}
    written, read = (training_case(brain_data, tmp_path, **kept) for _ in range(2))
    plain = training_case(brain_data, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.pt")} == files
    assert len(files) == 3
    for case in (written, read):
        assert torch.equal(case["image"], plain["image"])
        assert torch.equal(case["label"], plain["label"])


def test_channels_are_z_scores_of_the_brain_alone(brain_data, tmp_path):
    item = bundle_workflow(BUNDLE, ["train.json"], kind="train", **training_settings(brain_data, tmp_path))
    item.initialize()
    image = item.parser.get_parsed_content("validate#dataset")[0]["image"]
    assert image.shape[0] == 4
    for channel in image:
        brain = channel[channel != 0]
        assert 0.1 < len(brain) / channel.numel() < 0.9
        assert float(brain.mean()) == pytest.approx(0, abs=1e-3)
        assert float(brain.std()) == pytest.approx(1, abs=1e-2)


def test_fine_tuning_takes_weights_of_one_channel_and_another_head(brain_data, tmp_path, caplog):
    torch.manual_seed(0)
    other = bundle_workflow("swin_bob_btcv", ["inference.json"], kind="infer", **SMALL)
    other.initialize()
    given = other.network_def.state_dict()
    torch.save(given, tmp_path / "btcv.pt")
    settings = training_settings(brain_data, tmp_path, max_epochs=1, val_interval=2, learning_rate=0.0)
    with caplog.at_level(logging.INFO):
        run_bundle(BUNDLE, ["train.json"], **settings, pretrained=str(tmp_path / "btcv.pt"))
    tuned = weights(tmp_path / "models" / "training_state.ckpt")
    name = "swinViT.patch_embed.proj.weight"
    torch.testing.assert_close(tuned[name], given[name].expand(-1, 4, -1, -1, -1) / 4)
    body = "swinViT.layers1.0.blocks.0.attn.qkv.weight"
    assert torch.equal(tuned[body], given[body])
    assert tuned["out.conv.conv.weight"].shape[0] == 3
    report = next(message for message in caplog.messages if "btcv.pt: loaded" in message)
    assert "adapted [swinViT.patch_embed.proj.weight" in report
    assert "new [out.conv.conv.weight, out.conv.conv.bias]" in report


def test_sequences_in_another_order_are_refused_before_the_first_epoch(brain_data, tmp_path):
    content = json.loads((brain_data / "dataset_0.json").read_text())
    content["training"][0]["image"].reverse()
    (brain_data / "reversed.json").write_text(json.dumps(content))
    settings = training_settings(brain_data, tmp_path, datalist_file="reversed.json")
    with pytest.raises(RuntimeError) as caught:
        run_bundle(BUNDLE, ["train.json"], **settings)
    assert "-t2f.nii.gz: is t2f by its name, where t1n belongs" in reason(caught.value)


# Evaluation


def test_evaluation_scores_regions_of_the_saved_geometry_with_labels_of_any_year(older_data, trained, tmp_path):
    workflow = evaluate(trained, older_data, tmp_path, eval_split="test")
    scores = pd.read_csv(tmp_path / "runs" / "scores.csv", index_col="region")
    assert scores["case"].unique().tolist() == [CASE]
    assert list(scores.index) == ["TC", "WT", "ET"]
    pred = stored(tmp_path / "runs" / f"{CASE}_seg.nii.gz")
    label = stored(older_data / CASE / f"{CASE}-seg.nii.gz")
    for region, pred_ids, label_ids in (("TC", [1, 3], [1, 4]), ("WT", [1, 2, 3], [1, 2, 4]), ("ET", [3], [4])):
        a, b = np.isin(pred, pred_ids), np.isin(label, label_ids)
        assert scores.loc[region, "dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-6)
    assert workflow.evaluator.state.metrics["mean_dice"] == pytest.approx(scores["dice"].mean(), abs=1e-5)
    assert {"lesion_dice", "lesion_hd95_mm"} <= set(scores.columns)


def test_fold_chooses_what_validates(brain_data, trained, tmp_path):
    content = json.loads((brain_data / "dataset_0.json").read_text())
    for fold in (0, 2):
        evaluate(trained, brain_data, tmp_path / str(fold), fold=fold)
        cases = pd.read_csv(tmp_path / str(fold) / "runs" / "scores.csv")["case"].unique().tolist()
        assert cases == [f"{item['patient']}-000" for item in content["training"] if item["fold"] == fold]


# Inference


@pytest.fixture(scope="module")
def segmented(brain_data, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("segmented")
    infer(trained, brain_data / "dataset_0.json", out, gif="true")
    return out


def test_label_map_lies_on_the_grid_of_the_input(brain_data, segmented):
    image = nib.load(brain_data / CASE / f"{CASE}-t1c.nii.gz")
    pred = nib.load(segmented / f"{CASE}_seg.nii.gz")
    assert nib.affines.obliquity(image.affine).max() > np.deg2rad(0.5), "not oblique"
    assert len(set(image.header.get_zooms())) > 1, "not anisotropic"
    assert nib.aff2axcodes(image.affine) != ("R", "A", "S")
    assert pred.shape == image.shape
    assert pred.get_data_dtype() == np.uint8
    np.testing.assert_allclose(pred.affine, image.affine, atol=1e-4)
    assert set(np.unique(pred.dataobj)) <= {0, 1, 2, 3}


def test_volumes_and_pictures_are_those_of_the_label_map(segmented):
    volumes = pd.read_csv(segmented / "volumes.csv", index_col="case")
    assert list(volumes.columns) == ["necrotic core", "edema", "enhancing tumour"]
    pred = nib.load(segmented / f"{CASE}_seg.nii.gz")
    voxel_ml = abs(np.linalg.det(pred.affine[:3, :3])) / 1000
    assert volumes.loc[CASE, "edema"] == pytest.approx((np.asarray(pred.dataobj) == 2).sum() * voxel_ml, abs=1e-3)
    organs = pd.read_csv(segmented / "organs.csv")
    assert organs["organ"].tolist() == list(volumes.columns)
    assert organs["volume_ml"].tolist() == pytest.approx(volumes.loc[CASE].tolist())
    assert {f"{CASE}_preview.png", f"{CASE}.gif"} <= {path.name for path in segmented.iterdir()}


def willing_weights(trained, folder):
    """Weights whose head finds every region somewhere."""
    state = weights(trained / "models" / "model.pt")
    state["out.conv.conv.weight"] = 20 * state["out.conv.conv.weight"]
    (folder / "models").mkdir()
    torch.save(state, folder / "models" / "model.pt")
    return folder


def test_older_numbering_is_written_on_request_and_read_in_the_preview(older_data, trained, tmp_path):
    loud = willing_weights(trained, tmp_path)
    infer(loud, older_data / CASE, tmp_path / "new")
    infer(loud, older_data / CASE, tmp_path / "old", enhancing_label=4)
    new, old = (stored(tmp_path / name / f"{CASE}_seg.nii.gz") for name in ("new", "old"))
    assert (new == 3).any(), "no enhancing tumour to renumber"
    np.testing.assert_array_equal(old, np.where(new == 3, 4, new))
    volumes = [(tmp_path / name / "volumes.csv").read_text() for name in ("new", "old")]
    assert volumes[0] == volumes[1]
    assert (tmp_path / "new" / f"{CASE}_preview.png").is_file(), "the label of the case's folder was not understood"


def test_folder_of_cases_is_segmented_and_an_incomplete_one_fails_alone(brain_data, trained, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(brain_data / CASE, source / CASE)
    shutil.copytree(brain_data / "BraTS-GLI-00000-000", source / "BraTS-GLI-00000-000")
    (source / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-t2f.nii.gz").unlink()
    with pytest.raises(SystemExit, match=r"1 of 2 cases failed:\n.*: t2f missing beside BraTS-GLI-00000-000-t1n"):
        infer(trained, source, tmp_path / "out")
    assert (tmp_path / "out" / f"{CASE}_seg.nii.gz").is_file()
    assert list(pd.read_csv(tmp_path / "out" / "failed.csv")["case"]) == ["BraTS-GLI-00000-000"]


def test_four_parts_alone_give_the_label_map_of_the_bundle(brain_data, trained, segmented, tmp_path):
    """MONAI Label and Deploy parse these four without the metadata."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser.update({**SMALL, "output_dir": str(tmp_path)})
    network, preprocessing, inferer, postprocessing = (
        parser.get_parsed_content(part) for part in ("network_def", "preprocessing", "inferer", "postprocessing")
    )
    network.load_state_dict(weights(trained / "models" / "model.pt"))
    data = preprocessing({"image": [str(brain_data / CASE / f"{CASE}-{kind}.nii.gz") for kind in SEQUENCES]})
    with torch.no_grad():
        data["pred"] = inferer(list_data_collate([data])["image"], network.eval())[0]
    pred = postprocessing(data)["pred"]
    np.testing.assert_array_equal(np.asarray(pred)[0], stored(segmented / f"{CASE}_seg.nii.gz"))


def test_weights_of_monai_before_1_5_are_converted_and_segment_with_the_old_merging(brain_data, tmp_path):
    old = bundle_workflow(BUNDLE, ["inference.json"], kind="infer", **SMALL, legacy_merging=True)
    old.initialize()
    state = {key: value for key, value in old.network_def.state_dict().items() if not is_marker(key)}
    torch.save({"state_dict": state}, tmp_path / "model_final.pt")
    found = convert(tmp_path / "model_final.pt", tmp_path / "models" / "model.pt", legacy_merging=True)
    assert (found["in_channels"], found["out_channels"]) == (4, 3)
    infer(tmp_path, brain_data / CASE, tmp_path / "out", legacy_merging="true")
    assert (tmp_path / "out" / f"{CASE}_seg.nii.gz").is_file()
    with pytest.raises(RuntimeError) as caught:
        infer(tmp_path, brain_data / CASE, tmp_path / "refused")
    assert "set legacy_merging to true" in reason(caught.value)


# Adapting


def test_inference_adapts_and_leaves_the_network_as_it_was(brain_data, trained, tmp_path):
    assert (trained / "models" / "spectrum.json").is_file()
    workflow = infer(trained, brain_data / CASE, tmp_path, "etta.json", **WILLING)
    table = pd.read_csv(tmp_path / "etta.csv")
    assert table["case"].tolist() == [CASE]
    assert table["entropy_before"].between(0, 1).all()
    assert table["accepted"].all(), table["reason"][0]
    state, network = weights(trained / "models" / "model.pt"), workflow.parser.get_parsed_content("network")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_evaluation_adapts_and_scores(brain_data, trained, tmp_path):
    overlay = ["etta_evaluate.json"]
    workflow = evaluate(trained, brain_data, tmp_path, *overlay, eval_split="test", **WILLING)
    assert pd.read_csv(tmp_path / "runs" / "etta.csv")["case"].tolist() == [CASE]
    assert {"mean_dice", "mean_lesion_dice", "etta_accepted"} <= set(workflow.evaluator.state.metrics)


def test_overlays_are_those_of_btcv_but_for_the_activation():
    for name in ("etta.json", "etta_evaluate.json"):
        ours, theirs = (
            json.loads((ROOT / "bundles" / b / "configs" / name).read_text()) for b in (BUNDLE, "swin_bob_btcv")
        )
        assert ours["etta"].pop("activation") == "sigmoid"
        assert ours == theirs


# Raw scans


@pytest.fixture
def raw_scans():
    folder = SHARED_DATA / "brain_mri"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


def test_raw_scans_are_refused_and_nothing_is_written(raw_scans, trained, tmp_path):
    with pytest.raises(SystemExit, match=r"TCGA-FG-6692: .*-t1c.nii.gz: not all sequences lie on its grid: t2w has"):
        infer(trained, raw_scans, tmp_path)
    failed = pd.read_csv(tmp_path / "failed.csv")
    assert failed["case"].tolist() == ["TCGA-FG-6692"]
    assert "set resample to true" in failed["reason"][0]
    assert not list(tmp_path.glob("*_seg.nii.gz"))


def test_raw_scans_are_segmented_on_the_grid_of_t1c_when_resampled(raw_scans, trained, tmp_path):
    infer(trained, raw_scans, tmp_path, resample="true")
    pred, t1c = nib.load(tmp_path / "TCGA-FG-6692_seg.nii.gz"), nib.load(raw_scans / "TCGA-FG-6692-t1c.nii.gz")
    assert pred.shape == t1c.shape == (256, 224, 26)
    np.testing.assert_allclose(pred.affine, t1c.affine, atol=1e-4)
    assert (tmp_path / "TCGA-FG-6692_preview.png").is_file()
