"""Bad settings: each is refused by one message that names it, before anything is read or written."""

import json
import math
import subprocess
import sys

import pytest
from monai.bundle import ConfigParser

from scripts.common.command_line import check_command_line
from scripts.common.errors import InputError
from scripts.common.settings import declarations
from tests.conftest import ROOT

WORKFLOWS = (
    ("swin_bob_btcv", "train.json"),
    ("swin_bob_btcv", "inference.json"),
    ("swin_bob_btcv", "train.json,evaluate.json"),
    ("swin_bob_btcv", "train.json,cleaned_labels.json"),
    ("swin_bob_btcv", "inference.json,etta.json"),
    ("swin_bob_brats", "train.json"),
    ("swin_bob_brats", "inference.json"),
    ("swin_bob_brats", "train.json,evaluate.json,etta_evaluate.json"),
    ("swin_bob_pretrain", "train.json"),
    ("swin_bob_pretrain", "inference.json"),
    ("swin_bob_pretrain", "train.json,evaluate.json,zero_shot.json"),
    ("solf_filter", "train.json"),
    ("solf_filter", "train.json,paper.json"),
    ("solf_filter", "inference.json"),
    ("solf_filter", "inference.json,evaluate.json"),
)
BAD = {
    "integer": (-2, 1.5, math.nan, 10**12 + 0.5, "many", [], {"a": 1}, True),
    "number": (-1, 1e30, math.nan, math.inf, -math.inf, "much", [0.5], False),
    "boolean": ("yes", "maybe", 2, 0, [], "truee"),
    "string": (5, 1.5, [], {"a": 1}, True),
    "array": (
        1,
        "1;2;3",
        [],
        [0, 0, 0],
        [-1, 1, 1],
        [math.nan] * 3,
        [1, 2, "3"],
        [1, 2, 3, 4],
        ["a", "b", "c"],
        [[1], 2, 3],
    ),
    "enum": ("none", "", 17, [], "Cache"),
}
"""Values that no setting of a kind takes."""
UNKNOWN = (
    "spacing", "ckpt", "lr", "epochs", "epsilon", "batchsize", "gpu", "fp16", "checkpoint", "weights", "model", "out",
    "input_dir", "overlap", "roi_size", "patience", "folds", "val_intervall", "Max_epochs", "sw_overlap_", "scripts",
)  # fmt: skip
NESTED = (
    ("network_def#feature_sizes", 24),
    ("network_def#spatial_dim", 3),
    ("network_def#downsample#legaci", True),
    ("train#trainr#max_epochs", 3),
    ("train#dataloader#num_worker#x", 3),
    ("train#handlers#99#interval", 3),
    ("validate#inferer#overlaps_", 0.5),
    ("optimizer#learning_rate", 0.1),
    ("network_def#use_checkpoint", "false"),
    ("train#dataloader#shuffle", "true"),
    ("network_def#feature_size", 7),
    ("network_def#spatial_dims", 2),
    ("network_def#depths", [0, 0, 0, 0]),
    ("network_def#window_size", 0),
    ("network_def#depths", [1, 1]),
    ("sw_device", None),
    ("max_epochs", None),
)


def kind(name):
    """Return the key of `BAD` for a setting."""
    declared = declarations()[name]
    types = declared.get("type", "enum")
    types = [types] if isinstance(types, str) else types
    return "enum" if "enum" in declared else next(name for name in types if name in BAD)


def bad_values(name):
    """Return values that are refused; some lists are right for lists of any names."""
    is_list_of_names = declarations()[name].get("items", {}) == {"type": "string", "minLength": 1}
    return [value for value in BAD[kind(name)] if not is_list_of_names or value not in ([], ["a", "b", "c"])]


def settings_of(bundle, configs):
    parser = ConfigParser()
    parser.read_config([str(path) for path in paths(bundle, configs)])
    return [name for name in declarations() if name in parser and not isinstance(parser[name], dict)]


def paths(bundle, configs):
    return [ROOT / "bundles" / bundle / "configs" / name for name in configs.split(",")]


def check(bundle, configs, **settings):
    files = ",".join(map(str, paths(bundle, configs)))
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    check_command_line(["monai/bundle/__main__.py", "run", "--config_file", files, *words])


@pytest.mark.parametrize(("bundle", "configs"), WORKFLOWS)
def test_every_bad_value_of_every_setting_is_refused_in_one_message(bundle, configs):
    values = {name: bad_values(name) for name in settings_of(bundle, configs)}
    for n in range(max(map(len, BAD.values()))):
        bad = {name: found[n] for name, found in values.items() if n < len(found)}
        if not bad:
            break
        with pytest.raises(InputError) as error:
            check(bundle, configs, **bad)
        lines = str(error.value).split("\n")[1:]
        assert [name for name in bad if not any(f"{name} is " in line or f"--{name}: " in line for line in lines)] == []


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize(("bundle", "configs"), WORKFLOWS[::3])
def test_unknown_setting_is_refused(bundle, configs, name):
    with pytest.raises(InputError, match=f"--{name}: not a setting of|--{name}: a setting of"):
        check(bundle, configs, **{name: 1})


@pytest.mark.parametrize(("name", "value"), NESTED)
def test_part_of_a_component_that_does_not_exist_is_refused(name, value):
    with pytest.raises(InputError, match="command line: 1 problem;") as error:
        check("swin_bob_btcv", "train.json", **{name: value})
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("bundle", "configs", "other"),
    [
        ("swin_bob_btcv", "train.json", "etta_adapt"),
        ("swin_bob_btcv", "inference.json", "max_epochs"),
        ("swin_bob_btcv", "train.json", "eval_split"),
        ("swin_bob_brats", "inference.json", "fold"),
        ("solf_filter", "inference.json", "votes"),
        ("solf_filter", "train.json", "known_errors"),
    ],
)
def test_setting_of_another_config_is_refused_with_its_name(bundle, configs, other):
    with pytest.raises(InputError, match=rf"--{other}: a setting of .*\.json.*, which --config_file does not list"):
        check(bundle, configs, **{other: 1})


def test_defaults_of_every_workflow_pass():
    for bundle, configs in WORKFLOWS:
        check(bundle, configs)


def test_wrong_setting_of_a_config_file_is_refused_too(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"max_epochs": 0, "val_interval": 7}))
    files = f"{paths('swin_bob_btcv', 'train.json')[0]},{tmp_path / 'mine.json'}"
    with pytest.raises(InputError, match="max_epochs is 0: give a whole number from 1"):
        check_command_line(["monai/bundle/__main__.py", "run", "--config_file", files])


COMMANDS = (
    ("swin_bob_btcv", "train.json", {"seed": -1}, "seed is -1: give a whole number from 0 to 4294967295"),
    ("swin_bob_btcv", "train.json", {"max_epochs": 1.5}, "max_epochs is 1.5: give a whole number from 1"),
    (
        "swin_bob_btcv",
        "train.json",
        {"val_interval": 9, "max_epochs": 3},
        "val_interval is 9, above the 3 of max_epochs",
    ),
    ("swin_bob_btcv", "inference.json", {"spacing_mm": [1, 0, 1]}, "spacing_mm is [1, 0, 1]: give three numbers"),
    ("swin_bob_brats", "inference.json", {"patch_size": [100, 128, 128]}, "such as [96, 128, 128]"),
    ("swin_bob_brats", "train.json", {"enhancing_label": -1}, "--enhancing_label: "),
    ("solf_filter", "train.json", {"features": "['sphericity','sphericity']"}, "each once"),
    ("solf_filter", "inference.json", {"drop_share": "nan"}, "drop_share is"),
)


@pytest.mark.hostile
@pytest.mark.parametrize(("bundle", "configs", "settings", "message"), COMMANDS)
def test_command_ends_with_one_message_and_writes_nothing(tmp_path, bundle, configs, settings, message):
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    folders = ["--output_dir", str(tmp_path / "out"), "--dataset_dir", str(tmp_path / "none")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"configs/{configs}", *words, *folders]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "bundles" / bundle)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert message in done.stderr.partition("\nerror: command line: ")[2]
    assert list(tmp_path.iterdir()) == []
