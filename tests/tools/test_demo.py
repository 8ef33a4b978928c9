import contextlib
import json
import subprocess

import pandas as pd
import pytest
from monai.bundle import ConfigParser

from scripts.common.command_line import check_command_line
from scripts.data.datalist import load_datalist
from tools import demo
from tools.phantom import write_cohort


def test_settings_of_the_demo_override_what_the_configs_have():
    train = ConfigParser(json.loads((demo.BUNDLE / "configs" / "train.json").read_text()))
    new_arguments = {"network_def#depths", "network_def#window_size", "loss#batch", "loss#weight"}
    settings = {**demo.REDUCED_NETWORK, **demo.REDUCED_TRAINING, **demo.PHANTOMS, **demo.PAIR}
    assert [key for key in settings if key not in train and key not in new_arguments] == []


@pytest.mark.parametrize("schedule", [demo.PHANTOMS, {**demo.PAIR, "pretrained": "model.pt"}], ids=["phantoms", "pair"])
def test_commands_of_the_demo_pass_the_check_of_the_bundle(schedule, tmp_path, monkeypatch):
    """Formerly `make demo` ended at its first command: it gave true for a part of a component."""
    commands = []

    def checked(words, *, cwd, check, env):
        with contextlib.chdir(cwd):
            check_command_line(["monai/bundle/__main__.py", *words[words.index("run") :]])
        commands.append(words)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(demo.subprocess, "run", checked)
    scores = {f"mean_{name}": [0.5] for name in ("dice", "hd95_mm", "asd_mm", "surface_dice")}
    pd.DataFrame({"organ": ["mean"], **scores}).to_csv(tmp_path / "summary.csv")
    demo.demonstrate(tmp_path, schedule, what="a phantom")
    assert len(commands) == 3


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
        demo.run({"dataset_dir": str(tmp_path)}, "inference.json")
