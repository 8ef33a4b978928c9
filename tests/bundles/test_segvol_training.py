"""Training and evaluation of segvol with a tiny network."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from scripts.common.errors import root_cause
from scripts.segvol.training import MIXES
from tests.conftest import run_bundle
from tests.scripts.models.tiny_networks import TINY_SEGVOL, tiny_segvol
from tests.two_ranks import assert_same_weights, train_on_two_ranks
from tools.phantom import write_cohort

TRAIN, EVALUATE = ["train.json"], ["train.json", "evaluate.json"]
ORGANS = [2, 3, 6]  # kidneys and liver
TINY = {f"network_def#{key}": value for key, value in TINY_SEGVOL.items()}
TINY |= {"num_workers": 0, "organs_per_sample": 2, "pseudo_per_sample": 2}
TRAINING = {"max_epochs": 2, "val_interval": 1, "warmup_epochs": 1, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two phantoms for training, one each for validation and test."""
    grid = {"shape": (40, 32, 36), "spacing_mm": (7.5, 6.9, 7.2)}
    return write_cohort(tmp_path_factory.mktemp("torso"), cases=4, seed=3, organs=ORGANS, **grid).parent


def settings(data, folder, **more):
    folders = {
        "ckpt_dir": str(folder / "models"),
        "output_dir": str(folder / "runs"),
        "cache_dir": str(folder / "cache"),
    }
    return {**TINY, **TRAINING, **folders, "dataset_dir": str(data), **more}


def state(folder):
    return torch.load(folder / "models" / "training_state.ckpt", weights_only=True)


def test_training_goes_on_to_the_weights_that_it_would_have_reached(tmp_path, data):
    """With optimizer and schedule; the published trainer restores neither and repeats an epoch at a rate of 0."""
    whole, parts = tmp_path / "a", tmp_path / "b"
    schedule = {"lr_scheduler#t_total": 2}
    run_bundle("segvol", TRAIN, **settings(data, whole, **schedule))
    run_bundle("segvol", TRAIN, **settings(data, parts, **schedule, max_epochs=1))
    run_bundle("segvol", TRAIN, **settings(data, parts, **schedule, resume=True))
    one, other = state(whole), state(parts)
    assert all(torch.equal(one["network"][key], other["network"][key]) for key in one["network"])
    assert one["lr_scheduler"] == other["lr_scheduler"]
    assert set(torch.load(whole / "models" / "model.pt", weights_only=True)) == set(tiny_segvol().state_dict())


def test_first_epoch_trains_and_the_text_tower_stays(tmp_path, data):
    torch.save(tiny_segvol(seed=5).state_dict(), tmp_path / "model.pt")
    run_bundle("segvol", TRAIN, **settings(data, tmp_path, max_epochs=1, pretrained=str(tmp_path / "model.pt")))
    before, after = tiny_segvol(seed=5).state_dict(), state(tmp_path)["network"]
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert {"text_encoder.dim_align.weight", "image_encoder.patch_embedding.position_embeddings"} <= changed
    assert not [key for key in changed if "clip_text_model" in key]


def test_two_ranks_train_one_network_and_score_the_whole_validation_set(tmp_path, data):
    """Though each draws its own number of clicks."""
    content = json.loads((data / "dataset_0.json").read_text())
    content["validation"] += content.pop("test")
    (tmp_path / "list.json").write_text(json.dumps(content))
    given = settings(data, tmp_path, datalist_file=str(tmp_path / "list.json"))
    one, other = train_on_two_ranks("segvol", tmp_path, **given)
    assert_same_weights(one["network"], other["network"])
    assert_same_weights(one["network"], state(tmp_path)["network"])
    assert one["metrics"] == other["metrics"]
    given |= {"ckpt_dir": str(tmp_path / "alone"), "max_epochs": 1, "learning_rate": 0.0}
    given |= {"pretrained": str(tmp_path / "models" / "training_state.ckpt")}
    alone = run_bundle("segvol", TRAIN, **given).parser.get_parsed_content("validate#evaluator").state.metrics
    assert one["metrics"]["val_mean_dice"] == pytest.approx(alone["val_mean_dice"], abs=1e-4)


def test_training_takes_prepared_cases_from_the_store_with_their_pseudo_masks(tmp_path, data):
    """So they are made once, also of several runs."""
    given = settings(data, tmp_path, max_epochs=1, dataset="store")
    run_bundle("segvol", TRAIN, **given)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    run_bundle("segvol", TRAIN, **given)
    assert files
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    run_bundle("segvol", TRAIN, **settings(data, tmp_path, max_epochs=1, pseudo_per_sample=0))


def test_evaluation_scores_each_prompt_of_each_organ(tmp_path, data):
    (tmp_path / "models").mkdir()
    torch.save(tiny_segvol().state_dict(), tmp_path / "models" / "model.pt")
    given = settings(data, tmp_path, clicks=[1, 2], jitter=[0.2], eval_split="test", zoom_in=False)
    for folder in "ab":
        run_bundle("segvol", EVALUATE, **{**given, "output_dir": str(tmp_path / folder)})
    scores = pd.read_csv(tmp_path / "a" / "scores.csv")
    labels = json.loads((data / "dataset_0.json").read_text())["labels"]
    assert set(scores["case"]) == {"torso_003"}
    assert set(scores["organ"]) == set(labels.values()) - {"background"}
    rows = scores[scores["organ"] == "liver"]
    kinds = [*MIXES, "box", "points", "clicks", "clicks"]
    assert rows["prompt"].tolist() == kinds
    assert rows["clicks"].tolist() == [0] * 8 + [1, 2]
    assert rows["jitter"].tolist() == [0] * 6 + [0.2] * 2 + [0, 0]
    assert scores["dice"].between(0, 1).all()
    summary = pd.read_csv(tmp_path / "a" / "summary.csv").set_index(["organ", "prompt", "clicks", "jitter"])["dice"]
    box = scores[(scores["prompt"] == "box") & (scores["jitter"] == 0)]["dice"]
    np.testing.assert_allclose(summary["mean", "box", 0, 0], box.mean(), atol=1e-5)
    assert (tmp_path / "a" / "prompts.png").is_file()
    assert (tmp_path / "a" / "scores.csv").read_bytes() == (tmp_path / "b" / "scores.csv").read_bytes()


def test_datalist_without_names_is_refused(tmp_path, data):
    """Names are the texts."""
    content = json.loads((data / "dataset_0.json").read_text())
    content.pop("labels")
    (tmp_path / "list.json").write_text(json.dumps(content))
    given = settings(data, tmp_path, datalist_file=str(tmp_path / "list.json"))
    with pytest.raises(Exception) as caught:  # noqa: PT011 (its cause is checked)
        run_bundle("segvol", TRAIN, **given)
    assert "add the names of the classes" in str(root_cause(caught.value))
