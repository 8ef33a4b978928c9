"""The whole bundle at small size: training, evaluation and inference on phantoms of B-mode images."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from scripts.ultrabones.tracking import read_tracking, rigid, surface_points_mm
from tests.conftest import TINY_OF, message_of, run_bundle
from tests.conftest import weights as weights_of
from tests.scripts.io.dicom_files import region, write_picture
from tests.scripts.models.tiny_networks import saved, state_of, tiny_of
from tests.two_ranks import assert_same_weights, train_on_two_ranks
from tools.ultrasound_sweep import CALIBRATION, write_sweep

TINY = TINY_OF["ultrabones"]
INFER, EVALUATE = ["inference.json"], ["train.json", "evaluate.json"]
TRAINING = {"max_epochs": 2, "val_interval": 1, "batch_size": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights, by which about half of a frame is bone."""
    network = tiny_of("ultrabones")
    with torch.no_grad():
        network.segmentation_head[0].bias -= network(torch.randn(1, 1, 64, 64)).median()
    return saved(tmp_path_factory.mktemp("weights") / "model.pt", network.state_dict())


def run(configs, folder, weights, **settings):
    given = {"ckpt_path": str(weights), "output_dir": str(folder / "out"), **TINY}
    run_bundle("ultrabones", configs, **{**given, **{key: str(value) for key, value in settings.items()}})
    return folder / "out"


def test_folder_of_pictures_is_segmented_on_their_own_grid(tmp_path, weights, ultrasound_data):
    images = next(ultrasound_data.rglob("UltrasoundImages"))
    out = run(INFER, tmp_path, weights, input=images, pixel_mm="$[0.5, 0.4]")
    names = sorted(path.stem for path in images.iterdir())
    table = pd.read_csv(out / "bones.csv", dtype={"case": str})
    assert table["case"].tolist() == names
    for name, row in zip(names, table.itertuples(), strict=True):
        mask = np.asarray(Image.open(out / f"{name}_seg.png"))
        assert mask.shape == (82, 96)
        assert set(np.unique(mask)) <= {0, 1}
        assert row.bone_share == mask.any()
        assert Image.open(out / f"{name}_preview.png").size == (192, 82)
    assert table["depth_mm"].dropna().between(0, 41).all()


def test_without_the_size_of_a_pixel_lengths_stay_empty(tmp_path, weights, ultrasound_data):
    out = run(INFER, tmp_path, weights, input=next(ultrasound_data.rglob("UltrasoundImages/*.png")))
    assert pd.read_csv(out / "bones.csv")[["length_mm", "depth_mm"]].isna().all(axis=None)


def test_sweep_as_nifti_is_segmented_frame_by_frame_on_its_grid(tmp_path, weights, ultrasound_data):
    frames = [np.asarray(Image.open(path)).T for path in sorted(ultrasound_data.rglob("UltrasoundImages/*.png"))[:4]]
    affine = nib.affines.from_matvec(np.diag([-0.5, -0.4, 3.0]), [5, 6, 7])
    nib.save(nib.Nifti1Image(np.stack(frames, axis=-1), affine), tmp_path / "sweep.nii.gz")
    for index, frame in enumerate(frames):
        Image.fromarray(frame.T).save(tmp_path / f"f{index}.png")
    out = tmp_path / "elsewhere"
    run(INFER, tmp_path, weights, input=tmp_path, gif="true", output_dir=out)
    found = nib.load(out / "sweep_seg.nii.gz")
    assert found.shape == (96, 82, 4)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.affine, affine)
    for index in range(4):
        alone = np.asarray(Image.open(out / f"f{index}_seg.png"))
        assert np.mean(np.asarray(found.dataobj)[..., index] != alone.T) < 1e-3
    assert [path.name for path in out.glob("*.gif")] == ["sweep.gif"]
    row = pd.read_csv(out / "bones.csv").set_index("case").loc["sweep"]
    assert row["frames"] == 4
    assert row["length_mm"] > 0


def test_ultrasound_of_dicom_is_segmented_as_its_frames_and_measured_in_mm(tmp_path, weights, ultrasound_data):
    frames = [np.asarray(Image.open(path)) for path in sorted(ultrasound_data.rglob("UltrasoundImages/*.png"))[:3]]
    (tmp_path / "in").mkdir()
    regions = {"SequenceOfUltrasoundRegions": [region(x_cm=0.04, y_cm=0.05)]}
    write_picture(tmp_path / "in" / "sweep.dcm", np.stack(frames), frames=3, **regions)
    colours = np.stack([frames[0]] * 3, axis=-1)
    write_picture(tmp_path / "in" / "one.dcm", colours, "RGB", **regions)
    Image.fromarray(frames[0]).save(tmp_path / "in" / "plain.png")
    out = run(INFER, tmp_path, weights, input=tmp_path / "in", gif="true")
    plain, one = (np.asarray(Image.open(out / f"{name}_seg.png")) for name in ("plain", "one"))
    np.testing.assert_array_equal(one, plain)
    sweep = nib.load(out / "sweep_seg.nii.gz")
    assert np.mean(plain != np.asarray(sweep.dataobj)[..., 0].T) < 1e-3
    table = pd.read_csv(out / "bones.csv", index_col="case")
    assert table["frames"].to_dict() == {"one": 1, "plain": 1, "sweep": 3}
    assert table["depth_mm"].notna().to_dict() == {"one": True, "plain": False, "sweep": True}
    assert (out / "sweep.gif").is_file()


def test_tracked_sweep_becomes_points_in_mm(tmp_path, weights):
    """Of random weights: the points are those of the masks that are written."""
    write_sweep(tmp_path, frames=3, size=(82, 96))
    settings = {"pixel_mm": "$[0.5, 0.5]", "calibration": f"${list(CALIBRATION)}", "poses": tmp_path / "tracking.csv"}
    out = run(INFER, tmp_path, weights, input=tmp_path / "images", **settings)
    expected = []
    for name, pose in read_tracking(tmp_path / "tracking.csv").items():
        mask = np.asarray(Image.open(out / f"{name}_seg.png"))
        expected.append(surface_points_mm(mask, (0.5, 0.5), pose @ rigid(CALIBRATION)))
    points = np.frombuffer((out / "sweep.ply").read_bytes().partition(b"end_header\n")[2], "<f4").reshape(-1, 3)
    np.testing.assert_allclose(points, np.concatenate(expected), atol=1e-4)
    assert (out / "sweep.png").is_file()


def test_training_is_repeatable_goes_on_and_is_evaluated(tmp_path, ultrasound_data):
    settings = {**TINY, **TRAINING, "dataset_dir": str(ultrasound_data), "output_dir": str(tmp_path / "runs")}
    for folder in "ab":
        run_bundle("ultrabones", ["train.json"], **settings, ckpt_dir=str(tmp_path / folder))
    one, other = (torch.load(tmp_path / k / "training_state.ckpt", weights_only=True)["network"] for k in "ab")
    assert all(torch.equal(one[key], other[key]) for key in one)
    run_bundle("ultrabones", ["train.json"], **{**settings, "max_epochs": 3}, ckpt_dir=str(tmp_path / "b"), resume=True)
    assert torch.load(tmp_path / "b" / "training_state.ckpt", weights_only=True)["epoch"] == 3
    split = {"dataset_dir": ultrasound_data, "eval_split": "test", "pixel_mm": "$[0.5, 0.5]"}
    out = run(EVALUATE, tmp_path, tmp_path / "a" / "model.pt", **split)
    summary = pd.read_csv(out / "summary.csv")
    assert summary.groupby("group").size().to_dict() == {"all": 21, "invisible": 21, "visible": 21}
    assert (summary["n"] == 3).all()
    assert pd.read_csv(out / "scores.csv")["case"].nunique() == 3


def test_two_ranks_validate_and_save_one_network_on_the_whole_set(ultrasound_data, tmp_path):
    folders = {"output_dir": str(tmp_path / "runs"), "ckpt_dir": str(tmp_path / "models")}
    given = {**TINY, **TRAINING, **folders, "dataset_dir": str(ultrasound_data)}
    one, other = train_on_two_ranks("ultrabones", tmp_path, **given)
    assert one["metrics"] == other["metrics"]
    assert_same_weights(one["network"], other["network"])
    assert_same_weights(one["network"], weights_of(tmp_path / "models" / "training_state.ckpt"))


def test_label_as_prediction_has_the_best_scores(tmp_path, weights, ultrasound_data, monkeypatch):
    """What is scored is the label of the file against the prediction on the same grid."""
    from scripts.ultrabones import scores

    given = scores.label_array
    monkeypatch.setattr(scores, "label_array", lambda item, key, **more: given(item, "label", **more))
    split = {"dataset_dir": ultrasound_data, "eval_split": "test", "pixel_mm": "$[0.5, 0.5]"}
    out = run(EVALUATE, tmp_path, weights, **split)
    summary = pd.read_csv(out / "summary.csv")
    assert (summary.loc[summary["group"] == "all", "f1"] == 1).all()


def test_scores_are_those_of_the_files_by_all_pairs_of_pixels(tmp_path, weights, ultrasound_data):
    """Of random weights, in mm of pixels that are not square, on the grid of the label's file."""
    split = {"dataset_dir": ultrasound_data, "eval_split": "test", "pixel_mm": "$[0.5, 0.4]"}
    out = run(EVALUATE, tmp_path, weights, **split)
    scores = pd.read_csv(out / "scores.csv")
    items = json.loads((ultrasound_data / "dataset_0.json").read_text())["test"]
    assert scores["case"].nunique() == len(items)
    for row in scores[(scores["tolerance_mm"] == 1.0) & (scores["empty"].isna())].itertuples():
        (item,) = [item for item in items if Path(item["image"]).stem == row.case.rpartition("_")[2]]
        image, label = (np.asarray(Image.open(ultrasound_data / item[key])) for key in ("image", "label"))
        seen = {"all": image >= 0, "visible": image >= 107, "invisible": image < 107}[row.group]
        found = (np.asarray(Image.open(out / f"{row.case}_seg.png")) > 0) & seen
        near = cdist(np.argwhere(found) * [0.5, 0.4], np.argwhere((label == 255) & seen) * [0.5, 0.4])
        precision, recall = np.mean(near.min(1) <= 1), np.mean(near.min(0) <= 1)
        assert (row.precision, row.recall) == pytest.approx((precision, recall), abs=1e-5)
        assert row.f1 == pytest.approx(2 * precision * recall / max(precision + recall, 1e-9), abs=1e-5)
        chamfer = row.pred_to_label_mm, row.label_to_pred_mm
        assert chamfer == pytest.approx((near.min(1).mean(), near.min(0).mean()), abs=1e-4)


def test_official_scores_count_what_they_leave_out(tmp_path, ultrasound_data, caplog):
    """Of a network that finds no bone, all."""
    network = tiny_of("ultrabones")
    with torch.no_grad():
        network.segmentation_head[0].bias.fill_(-100)
    split = {"dataset_dir": ultrasound_data, "eval_split": "test", "pixel_mm": "$[0.5, 0.4]", "official": "true"}
    out = run(EVALUATE, tmp_path, saved(tmp_path / "none.pt", network.state_dict()), **split)
    assert "left out 3 frames without bone in label or prediction" in caplog.text
    assert len(pd.read_csv(out / "summary.csv")) == 0


def test_weights_of_another_network_are_refused_by_one_message(tmp_path, weights, ultrasound_data):
    other = saved(tmp_path / "other.pt", state_of())
    message = message_of(run, INFER, tmp_path, other, input=next(ultrasound_data.rglob("UltrasoundImages")))
    assert message.startswith(f"{other}: weights of another network:")


def test_frames_brighter_than_white_fail_alone_and_say_why(tmp_path, weights, ultrasound_data):
    images = tmp_path / "in"
    images.mkdir()
    Image.fromarray(np.arange(82 * 96, dtype=np.uint16).reshape(82, 96)).save(images / "deep.png")
    Image.fromarray(np.arange(82 * 96).reshape(82, 96).astype(np.uint8)).save(images / "shallow.png")
    with pytest.raises(SystemExit):
        run(INFER, tmp_path, weights, input=images)
    failed = pd.read_csv(tmp_path / "out" / "failed.csv")
    assert failed["case"].tolist() == ["deep"]
    assert "not 0 to 255: set white to that of the images" in failed["reason"][0]
    assert (tmp_path / "out" / "shallow_seg.png").is_file()


def test_evaluation_without_the_size_of_a_pixel_says_so(tmp_path, weights, ultrasound_data):
    with pytest.raises(SystemExit):
        run(EVALUATE, tmp_path, weights, dataset_dir=ultrasound_data, eval_split="test")
    failed = pd.read_csv(tmp_path / "out" / "failed.csv")
    assert "pictures do not tell the size of a pixel; set pixel_mm" in failed["reason"][0]
