import json
import subprocess
import sys

import pytest

from scripts.common.command_line import check_command_line
from scripts.common.errors import InputError
from tests.conftest import ROOT, TINY, command_line

BUNDLE = ROOT / "bundles" / "swin_bob_btcv"
CONFIGS = BUNDLE / "configs"
INFERENCE = ("--config_file", str(CONFIGS / "inference.json"))
TRAIN = ("--config_file", str(CONFIGS / "train.json"))


def check(*words):
    check_command_line(["monai/bundle/__main__.py", "run", *words])


def refused(*words):
    """Return the lines about flags and settings."""
    with pytest.raises(
        InputError, match=r"^command line: \d+ problems?; correct or leave out these settings\n"
    ) as error:
        check(*words)
    return str(error.value).split("\n")[1:]


@pytest.mark.parametrize(
    ("config", "flag", "message"),
    [
        (INFERENCE, "--spacing", "--spacing: not a setting of inference.json; did you mean --spacing_mm?"),
        (TRAIN, "--epochs", "--epochs: not a setting of train.json; did you mean --max_epochs?"),
        (INFERENCE, "--confg_file", "--confg_file: not a setting of inference.json; did you mean --config_file?"),
        (INFERENCE, "--zzz", "--zzz: not a setting of inference.json"),
        (
            INFERENCE,
            "--etta_adapt",
            "--etta_adapt: a setting of etta.json and etta_evaluate.json, which --config_file does not list",
        ),
        (INFERENCE, "--max_epochs", "--max_epochs: a setting of train.json, which --config_file does not list"),
        (INFERENCE, "--netwrk#depths", "--netwrk: not a setting of inference.json; did you mean --network?"),
        (TRAIN, "--trian::trainer::max_epochs", "--trian: not a setting of train.json; did you mean --train?"),
    ],
)
def test_unknown_flag_is_refused_with_the_nearest_or_the_config_that_has_it(config, flag, message):
    for words in ([flag, "1"], [f"{flag}=1"], [f"{flag}=--x"], [flag]):
        assert refused(*config, *words) == [message]
        assert refused(*words, *config) == [message]


def test_all_unknown_flags_are_listed():
    assert [line.split(":")[0] for line in refused("--zzz", "1", *INFERENCE, "--spacing", "2")] == [
        "--zzz",
        "--spacing",
    ]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--spacing_mm", "[1, 1, 1]", "--amp=false"),
        ("--spacing-mm", "[1, 1, 1]"),
        ("--gif",),
        ("--nogif",),
        ("--network_def#feature_size", "24", "--network_def#spatial_dims=3"),
        ("--network_def::feature_size", "24"),
        ("--_meta_#version", "1"),
        ("--input=--odd--name.nii.gz", "--sw_overlap", "0.25"),
        ("--input", "folder", "another word"),
        ("--meta_file", "configs/metadata.json", "--logging_file", "configs/logging.conf"),
        ("--run_id", "run", "--init_id", "initialize", "--final_id", "finalize"),
        ("--tracking", "mlflow", "--tracking_uri", "folder", "--experiment_name", "first"),
        ("--", "--trace"),
    ],
)
def test_known_flags_pass(words):
    check(*INFERENCE, *words)
    check("evaluating", *INFERENCE, *words)


def test_flags_of_a_whole_training_pass():
    check("training", *TRAIN, *command_line({**TINY, "crops_per_case": 1, "dataset_dir": "data"}))
    check(*TRAIN, "--network_def#use_checkpoint", "False")
    check(*TRAIN, "--train::trainer::max_epochs", "1", "--validate#dataloader#num_workers", "0")


def test_flag_without_value_does_not_take_the_next_flag_for_one():
    assert refused("--gif", "--spacing", "1", *INFERENCE)[0].startswith("--spacing: ")


def test_tracking_settings_need_tracking():
    assert refused(*INFERENCE, "--experiment_name", "first")[0].startswith("--experiment_name: not a setting")


BOTH = [str(CONFIGS / name) for name in ("inference.json", "etta.json")]


@pytest.mark.parametrize("value", [str(BOTH), str(tuple(BOTH)), ",".join(BOTH), json.dumps(BOTH)])
def test_flags_of_all_listed_configs_are_known(value):
    check("--config_file", value, "--etta_adapt", "both", "--spacing_mm", "[1, 1, 1]", "--etta#steps", "3")
    message = "--etta_adap: not a setting of inference.json, etta.json; did you mean --etta_adapt?"
    assert refused("--config_file", value, "--etta_adap", "both") == [message]


def test_flags_of_an_args_file_are_checked_too(tmp_path):
    arguments = tmp_path / "args.json"
    arguments.write_text(json.dumps({"config_file": BOTH, "spacing_mm": [1, 1, 1], "gif": True}))
    check("--args_file", str(arguments), "--etta_adapt", "both")
    assert refused("--args_file", str(arguments), "--spacing", "1")[0].endswith("did you mean --spacing_mm?")
    arguments.write_text(json.dumps({"config_file": BOTH, "spacing": 1}))
    assert refused("--args_file", str(arguments))[0].startswith("--spacing: ")


def test_keys_that_extend_or_replace_parts_of_a_config_are_known(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"+train#handlers": [], "validate::sampler": {}}))
    check("--config_file", str([TRAIN[1], str(tmp_path / "a.json")]), "--train#inferer", "1", "--validate#sampler", "2")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--config_file", "none.json", "--zzz", "1"],
        ["run", "--zzz", "1"],
        ["verify_metadata", *INFERENCE, "--zzz", "1"],
        ["run"],
        [],
    ],
)
def test_what_monai_itself_refuses_is_left_to_monai(words):
    check_command_line(["monai/bundle/__main__.py", *words])


def test_unknown_flag_ends_a_run_with_one_message_before_anything_is_written(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    settings = ["--spacing", "1", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, cwd=BUNDLE)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(
        "\nerror: command line: 1 problem; correct or leave out these settings\n"
        "--spacing: not a setting of inference.json; did you mean --spacing_mm?\n"
    )
    assert list(tmp_path.iterdir()) == []
