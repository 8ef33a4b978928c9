import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from monai.bundle import ConfigParser

from scripts.common.command_line import check_command_line
from scripts.data.datalist import load_datalist
from tools import demo
from tools.phantom import write_cohort

SCORES = {f"mean_{name}": [0.5, 0.4] for name in ("dice", "hd95_mm", "asd_mm", "surface_dice")}


@pytest.mark.parametrize(
    ("bundle", "own"),
    [(demo.PRETRAIN, demo.PRETRAINING), (demo.FINE_TUNE, {**demo.BTCV, **demo.FINE_TUNING, **demo.PAIR})],
    ids=["pretraining", "fine-tuning"],
)
def test_settings_of_the_demo_override_what_the_configs_have(bundle, own):
    train = ConfigParser(json.loads((bundle / "configs" / "train.json").read_text()))
    new_arguments = {"network_def#depths", "network_def#window_size", "loss#batch", "loss#weight"}
    settings = {**demo.REDUCED_NETWORK, **demo.REDUCED_TRAINING, **own}
    assert [key for key in settings if key not in train and key not in new_arguments] == []


@pytest.fixture
def commands(monkeypatch):
    """Commands of bundles are checked as the bundle does, which formerly refused one, and leave scores."""
    done = []

    def checked(words, *, cwd, check, env):
        if "monai.bundle" in words:
            with contextlib.chdir(cwd):
                check_command_line(["monai/bundle/__main__.py", *words[words.index("run") :]])
            if "--ckpt_dir" in words:
                (models := Path(words[words.index("--ckpt_dir") + 1])).mkdir(parents=True, exist_ok=True)
                (models / "model.pt").touch()
            if "evaluate.json" in " ".join(words):
                out = Path(words[words.index("--output_dir") + 1])
                out.mkdir(parents=True, exist_ok=True)
                pd.DataFrame({"organ": ["liver", "mean"], **SCORES}).to_csv(out / "summary.csv")
                shutil.copyfile(label_of(out), out / "x_seg.nii.gz")
        done.append(words)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(demo.subprocess, "run", checked)
    return done


def label_of(out):
    """Return a label map below the parent of a folder, writing one if there is none."""
    path = out.parent / "truth" / "x.nii.gz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.full((4, 5, 6), 5, np.uint8), np.diag([5, 5, 6, 1])), path)
    return path


def test_pretraining_passes_the_check_of_the_bundle_and_shows_the_test_subject(tmp_path, commands):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "truth").symlink_to("../truth")
    items = [{"image": "images/x.nii.gz", "label": "truth/x.nii.gz"}]
    (tmp_path / "data" / "dataset_0.json").write_text(json.dumps({"test": items}))
    step = demo.pretrain(tmp_path)
    assert len(commands) == len(step.commands) == 2
    assert "mean Dice on a held-out subject is 0.400" in step.text
    assert [picture.is_file() for picture in step.pictures] == [True]


def test_fine_tuning_differs_by_the_pretrained_weights_alone_and_says_which_won(tmp_path, commands):
    step = demo.fine_tune(tmp_path, tmp_path / "model.pt")
    trained, _, scratch, _ = [words[words.index("run") :] for words in commands]
    at = trained.index("--pretrained")
    assert trained[at + 1] == str(tmp_path / "model.pt")
    same = [word.replace("from_scratch", "pretrained") for word in scratch]
    assert same == trained[:at] + trained[at + 2 :]
    assert step.table.loc["mean"].tolist() == [0.4, 0.4]
    assert "won" in step.text


def test_real_pair_is_fine_tuned_from_the_phantoms(tmp_path, commands):
    root = write_cohort(tmp_path / "cohort", cases=3, seed=0).parent
    files = (root / name / "torso_002.nii.gz" for name in ("imagesTs", "labelsTs"))
    demo.pair(tmp_path / "pair", *files, tmp_path / "model.pt")
    assert [str(tmp_path / "model.pt") in words for words in commands] == [True, True, False]


def test_image_without_label_is_refused(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--input", "image.nii.gz"])
    assert "--input and --label go together" in capsys.readouterr().err


def test_missing_file_of_a_pair_is_named(tmp_path):
    image = tmp_path / "image.nii.gz"
    image.touch()
    with pytest.raises(SystemExit, match=r"none.nii.gz: no such file; give --label another"):
        demo.write_pair(tmp_path / "out", image, tmp_path / "none.nii.gz")


def test_pair_becomes_a_data_set_for_an_overfit_check(tmp_path):
    root = write_cohort(tmp_path / "cohort", cases=3, seed=0).parent
    demo.write_pair(tmp_path, root / "imagesTs/torso_002.nii.gz", root / "labelsTs/torso_002.nii.gz")
    lists = load_datalist(tmp_path, num_classes=14, allow_overlap="true")
    assert [item["case"] for name in ("training", "validation", "test") for item in lists[name]] == ["torso_002"] * 3


def test_failing_command_ends_the_demo(tmp_path):
    with pytest.raises(SystemExit, match="failed with exit code 1"):
        demo.run(demo.FINE_TUNE, {"dataset_dir": str(tmp_path)}, "inference.json")
