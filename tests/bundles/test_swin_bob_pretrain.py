"""swin_bob_pretrain from images of any contrasts to label maps, with a tiny network on phantoms."""

import json
import shutil
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate

from scripts.common.errors import reason
from scripts.common.organs import ORGANS
from scripts.pretrain.transforms import present
from scripts.ukbb.archive import CHANNELS
from tests import conftest
from tests.conftest import ROOT, TINY, bundle_workflow, run_bundle, weights

BUNDLE = "swin_bob_pretrain"
CONFIGS = ROOT / "bundles" / BUNDLE / "configs"
SMALL = {**TINY, "patch_size": [64, 32, 32], "spacing_mm": [8.0, 8.0, 8.0]}
training_settings = partial(
    conftest.training_settings, patch_size=SMALL["patch_size"], spacing_mm=SMALL["spacing_mm"], batch_size=1
)


@pytest.fixture(scope="module")
def trained(dixon_data, tmp_path_factory):
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    run_bundle(BUNDLE, ["train.json"], **training_settings(dixon_data, folder, max_epochs=2))
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


def refusal(run, *arguments, **settings):
    """Return what the person at the terminal reads."""
    with pytest.raises((RuntimeError, ValueError, SystemExit)) as caught:
        run(*arguments, **settings)
    return reason(caught.value)


@pytest.fixture
def own_data(dixon_data, tmp_path):
    """A copy of the data to change, and a function that changes the voxels of a file."""
    folder = tmp_path / "data"
    shutil.copytree(dixon_data, folder)

    def change(name, how):
        image = nib.load(folder / name)
        nib.save(nib.Nifti1Image(how(np.asarray(image.dataobj).copy()), image.affine), folder / name)

    return folder, change


# Metadata


def test_classes_are_the_72_organs():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())["network_data_format"]
    names = metadata["outputs"]["pred"]["channel_def"]
    assert names == {"0": "background", **{str(label): name for label, name in ORGANS.items()}}
    assert tuple(metadata["inputs"]["image"]["channel_def"].values()) == CHANNELS


# Training


def test_training_leaves_weights_of_four_channels_and_73_classes(trained):
    state = weights(trained / "models" / "training_state.ckpt")
    assert state["swinViT.patch_embed.proj.weight"].shape[1] == 4
    assert state["out.conv.conv.bias"].shape == (73,)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_crops_lose_channels_at_random_but_never_all(dixon_data, tmp_path):
    settings = training_settings(dixon_data, tmp_path, channel_drop_prob=0.6)
    workflow = bundle_workflow(BUNDLE, ["train.json"], kind="train", **settings)
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("train#dataset")
    kept = [tuple(present(crop["image"]).tolist()) for _ in range(6) for crop in dataset[0]]
    assert len(set(kept)) > 1
    assert all(any(channels) for channels in kept)
    assert not all(all(channels) for channels in kept)


def test_flip_swaps_sides_of_all_paired_organs(dixon_data):
    workflow = bundle_workflow(BUNDLE, ["train.json"], kind="train", dataset_dir=str(dixon_data), **SMALL)
    workflow.initialize()
    assert len(workflow.parser.get_parsed_content("left_right_pairs")) == 19


def test_voxels_of_unknown_label_are_trained_on_and_validated_without(own_data, tmp_path):
    data, change = own_data
    for name in ("labels/dixon_000.nii.gz", "labels/dixon_002.nii.gz"):
        change(name, lambda voxels: np.where(voxels == 66, 255, voxels).astype(np.uint8))
    run_bundle(BUNDLE, ["train.json"], **training_settings(data, tmp_path, max_epochs=1))
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "models" / "training_state.ckpt").values())


def test_label_above_72_is_refused_with_its_file_and_id(own_data, tmp_path):
    data, change = own_data
    change("labels/dixon_001.nii.gz", lambda voxels: np.where(voxels == 5, 73, voxels).astype(np.uint8))
    said = refusal(run_bundle, BUNDLE, ["train.json"], **training_settings(data, tmp_path))
    assert "label values 73 are outside" in said
    assert "dixon_001.nii.gz" in said


def test_all_faults_of_images_are_listed_before_the_first_epoch(own_data, tmp_path):
    data, change = own_data
    change("images/dixon_000.nii.gz", lambda voxels: voxels[..., :3])
    datalist = json.loads((data / "dataset_0.json").read_text())
    datalist["training"][1]["contrast"] = "T1"
    (data / "dataset_0.json").write_text(json.dumps(datalist))
    said = refusal(run_bundle, BUNDLE, ["train.json"], **training_settings(data, tmp_path))
    assert "dixon_000.nii.gz: has 3 channels, and nothing names them" in said
    assert "dixon_001.nii.gz: contrast is 'T1': give one of fat, water, in_phase, opposed_phase" in said
    assert not (tmp_path / "models").exists()


def test_images_of_other_contrasts_train_together(own_data, tmp_path):
    data, change = own_data
    change("images/dixon_000.nii.gz", lambda voxels: voxels[..., 2])
    change("images/dixon_001.nii.gz", lambda voxels: voxels[..., :2])
    (data / "images" / "dixon_001.json").write_text('{"channels": ["fat", "water"]}')
    run_bundle(BUNDLE, ["train.json"], **training_settings(data, tmp_path, max_epochs=1))
    assert (tmp_path / "models" / "training_state.ckpt").is_file()


def test_weights_start_the_abdominal_bundle_and_keep_shared_heads(trained, torso_data, tmp_path, caplog):
    """One channel in place of four, 14 classes in place of 73, of which all are known."""
    pretrained = trained / "models" / "model.pt"
    own = {"pretrained": str(pretrained), "pretrained_classes": str(CONFIGS / "metadata.json"), "learning_rate": 1e-30}
    settings = conftest.training_settings(torso_data, tmp_path, max_epochs=1, **own)
    with caplog.at_level("INFO", logger="scripts.models.pretrained"):
        run_bundle("swin_bob_btcv", ["train.json"], **settings)
    assert "heads of 14 of 14 classes: background, spleen, right kidney" in caplog.text
    tuned, given = weights(tmp_path / "models" / "training_state.ckpt"), weights(pretrained)
    for own_id, organ_id in ((2, 2), (6, 5), (9, 36)):
        torch.testing.assert_close(tuned["out.conv.conv.weight"][own_id], given["out.conv.conv.weight"][organ_id])


def test_weights_start_the_brain_bundle(trained, brain_data, tmp_path):
    pretrained = str(trained / "models" / "model.pt")
    small = {"patch_size": [32, 64, 32], "learning_rate": 1e-30}
    settings = conftest.training_settings(brain_data, tmp_path, max_epochs=1, pretrained=pretrained, **small)
    run_bundle("swin_bob_brats", ["train.json"], **settings)
    tuned, given = weights(tmp_path / "models" / "training_state.ckpt"), weights(trained / "models" / "model.pt")
    torch.testing.assert_close(
        tuned["decoder1.conv_block.conv1.conv.weight"], given["decoder1.conv_block.conv1.conv.weight"]
    )


# Evaluation


def test_evaluation_scores_the_saved_geometry(dixon_data, trained, tmp_path):
    evaluate(trained, dixon_data, tmp_path, eval_split="test")
    scores = pd.read_csv(tmp_path / "runs" / "scores.csv")
    pred = stored(tmp_path / "runs" / "dixon_003_seg.nii.gz")
    label = stored(dixon_data / "labels" / "dixon_003.nii.gz")
    assert set(scores["class_id"]) == set(np.unique(np.concatenate([pred.ravel(), label.ravel()]))) - {0}
    for row in scores.itertuples():
        a, b = pred == row.class_id, label == row.class_id
        assert row.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-6)


def test_ignored_voxels_do_not_count_in_scores(own_data, trained, tmp_path):
    data, change = own_data
    change("labels/dixon_003.nii.gz", lambda voxels: np.where(voxels == 66, 255, voxels).astype(np.uint8))
    evaluate(trained, data, tmp_path, eval_split="test")
    scores = pd.read_csv(tmp_path / "runs" / "scores.csv", index_col="class_id")
    pred, label = (stored(p) for p in (tmp_path / "runs/dixon_003_seg.nii.gz", data / "labels/dixon_003.nii.gz"))
    known = label != 255
    assert not known.all()
    for class_id, row in scores.iterrows():
        a, b = (pred == class_id) & known, label == class_id
        assert row["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-6)


def test_zero_shot_scores_the_classes_of_another_data_set(torso_data, trained, tmp_path):
    """CT with the labels of BTCV, by a network of 72 organs."""
    evaluate(trained, torso_data, tmp_path, "zero_shot.json", eval_split="test", target="btcv")
    scores = pd.read_csv(tmp_path / "runs" / "scores.csv")
    assert set(scores["class_id"]) == set(range(1, 14))
    assert scores.loc[scores["class_id"] == 6, "organ"].tolist() == ["liver"]
    pred, label = stored(tmp_path / "runs/torso_003_seg.nii.gz"), stored(torso_data / "labelsTs/torso_003.nii.gz")
    assert pred.shape == label.shape
    assert pred.max() <= 13
    for row in scores.itertuples():
        a, b = pred == row.class_id, label == row.class_id
        assert row.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-6)


def test_zero_shot_leaves_out_what_has_no_counterpart(torso_data, trained, tmp_path, caplog):
    names = dict(enumerate(["spleen", "right kidney", "left kidney", "brain", "unknown", "liver"], start=1))
    names |= {label: f"other {label}" for label in range(7, 14)}
    (tmp_path / "names.json").write_text(json.dumps(names))
    target = str(tmp_path / "names.json")
    evaluate(trained, torso_data, tmp_path, "zero_shot.json", eval_split="test", target=target)
    scores = pd.read_csv(tmp_path / "runs" / "scores.csv")
    assert scores["organ"].tolist() == ["spleen", "right kidney", "left kidney", "liver"]
    assert "left out, for they have no counterpart: brain, unknown, other 7" in caplog.text


def test_zero_shot_on_a_real_ct(real_ct, trained, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("image", "label_btcv13"):
        shutil.copy(real_ct / f"{name}.nii.gz", data)
    item = {"image": "image.nii.gz", "label": "label_btcv13.nii.gz"}
    (data / "dataset_0.json").write_text(json.dumps({"test": [item]}))
    evaluate(trained, data, tmp_path, "zero_shot.json", eval_split="test")
    scores = pd.read_csv(tmp_path / "runs" / "scores.csv", index_col="organ")
    volume_ml = (stored(data / "label_btcv13.nii.gz") == 6).sum() * 27 / 1000
    assert scores.loc["liver", "volume_ml_label"] == pytest.approx(volume_ml, rel=1e-3)


def test_unknown_target_is_refused(torso_data, trained, tmp_path):
    said = refusal(evaluate, trained, torso_data, tmp_path, "zero_shot.json", target="btvc")
    assert "target is 'btvc': give btcv, amos, totalsegmentator or a .json file of names; did you mean btcv?" in said


# Inference


@pytest.fixture(scope="module")
def segmented(dixon_data, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("segmented")
    infer(trained, dixon_data / "dataset_0.json", out)
    return out


def test_label_map_lies_on_the_grid_of_the_input(dixon_data, segmented):
    image, pred = nib.load(dixon_data / "images/dixon_003.nii.gz"), nib.load(segmented / "dixon_003_seg.nii.gz")
    assert nib.aff2axcodes(image.affine) != ("R", "A", "S")
    assert pred.shape == image.shape[:3]
    assert pred.get_data_dtype() == np.uint8
    np.testing.assert_allclose(pred.affine, image.affine, atol=1e-4)
    assert set(np.unique(pred.dataobj)) <= set(range(73))


def test_volumes_have_a_column_for_each_organ_and_a_picture_is_drawn(segmented):
    volumes = pd.read_csv(segmented / "volumes.csv", index_col="case")
    pred = nib.load(segmented / "dixon_003_seg.nii.gz")
    voxel_ml = abs(np.linalg.det(pred.affine[:3, :3])) / 1000
    assert set(ORGANS.values()) <= set(volumes.columns)
    for label, name in ORGANS.items():
        assert volumes.loc["dixon_003", name] == pytest.approx((stored_of(pred) == label).sum() * voxel_ml, abs=1e-2)
    assert (segmented / "dixon_003_preview.png").is_file()


def stored_of(image):
    return np.asarray(image.dataobj)


def test_picture_is_drawn_beside_a_label_with_ignored_voxels(own_data, trained, tmp_path):
    data, change = own_data
    change("labels/dixon_003.nii.gz", lambda voxels: np.where(voxels == 66, 255, voxels).astype(np.uint8))
    infer(trained, data / "dataset_0.json", tmp_path / "out")
    assert (tmp_path / "out" / "dixon_003_preview.png").is_file()


@pytest.mark.parametrize("contrast", ["in_phase", "water"])
def test_image_of_one_contrast_is_segmented(dixon_data, trained, tmp_path, contrast):
    image = nib.load(dixon_data / "images/dixon_003.nii.gz")
    nib.save(nib.Nifti1Image(stored_of(image)[..., CHANNELS.index(contrast)], image.affine), tmp_path / "one.nii.gz")
    infer(trained, tmp_path / "one.nii.gz", tmp_path / "out", contrast=contrast)
    assert nib.load(tmp_path / "out" / "one_seg.nii.gz").shape == image.shape[:3]
    assert (tmp_path / "out" / "one_preview.png").is_file()


def test_ct_is_segmented(torso_data, trained, tmp_path):
    infer(trained, torso_data / "imagesTs" / "torso_003.nii.gz", tmp_path)
    assert (tmp_path / "torso_003_seg.nii.gz").is_file()


def test_etta_adapts_on_inference_and_evaluation(dixon_data, trained, tmp_path):
    etta = {"etta_adapt": "both", "etta#steps": 1, "etta#windows_per_step": 1}
    assert (trained / "models" / "spectrum.json").is_file()
    infer(trained, dixon_data / "dataset_0.json", tmp_path / "out", "etta.json", **etta)
    assert (tmp_path / "out" / "etta.csv").is_file()
    evaluate(trained, dixon_data, tmp_path, "etta_evaluate.json", eval_split="test", **etta)
    assert (tmp_path / "runs" / "etta.csv").is_file()


def test_wrong_number_of_channels_fails_its_case_alone(dixon_data, trained, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(dixon_data / "images" / "dixon_003.nii.gz", source / "good.nii.gz")
    image = nib.load(source / "good.nii.gz")
    nib.save(nib.Nifti1Image(stored_of(image)[..., :3], image.affine), source / "bad.nii.gz")
    with pytest.raises(SystemExit, match=r"bad: .*bad.nii.gz: has 3 channels, and nothing names them"):
        infer(trained, source, tmp_path / "out")
    assert (tmp_path / "out" / "good_seg.nii.gz").is_file()


def test_four_parts_alone_give_the_label_map_of_the_bundle(dixon_data, trained, segmented, tmp_path):
    """MONAI Label and Deploy parse these four without the metadata and put the path beside the image."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser.update({**SMALL, "output_dir": str(tmp_path)})
    parts = ("network_def", "preprocessing", "inferer", "postprocessing")
    network, preprocessing, inferer, postprocessing = map(parser.get_parsed_content, parts)
    network.load_state_dict(weights(trained / "models" / "model.pt"))
    path = str(dixon_data / "images" / "dixon_003.nii.gz")
    data = preprocessing({"image": path, "image_path": path})
    with torch.no_grad():
        data["pred"] = inferer(list_data_collate([data])["image"], network.eval())[0]
    data = postprocessing(data)
    np.testing.assert_array_equal(np.asarray(data["pred"])[0], stored(segmented / "dixon_003_seg.nii.gz"))
