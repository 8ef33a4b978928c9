import json
import math
from typing import get_args

import pytest
from monai.bundle import ConfigParser

from scripts.common.settings import declarations, describe, setting_problems
from scripts.data.datalist import SECTIONS
from scripts.data.datasets import KINDS
from scripts.etta.settings import Adapt
from scripts.preview.rendering import PLANES
from scripts.segvol.inferer import OVERLAPS
from scripts.segvol.prompt_files import SPACES
from scripts.solf.filter import REJECTED
from scripts.solf.fitting import Rule
from scripts.solf.thresholds import FEATURES
from scripts.universeg.inferer import SUPPORT_CHOICES
from scripts.universeg.study import LEAVE_OUT
from scripts.universeg.transforms import NORMALIZATIONS
from tests.conftest import ROOT

CONFIGS = sorted(path for path in ROOT.glob("bundles/*/configs/*.json") if path.name != "metadata.json")
WIRING = {
    "trained",
    "imports",
    "network_grid_keys",
    "is_not_rank0",
    "channel_def",
    "sequences",
    "network",
    "local_rank",
}
WIRING |= {"initialize", "run", "finalize", "training", "write_spectrum", "regions", "class_names", "files", "weights"}
WIRING |= {"contrasts", "scored_classes", "cases", "pattern", "suffixes"}
"""Top-level entries that connect components and that no user sets."""


def problem(name, value, **others):
    (line,) = setting_problems({name: value, **others})
    return line


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_every_setting_is_declared(config):
    content = json.loads(config.read_text())
    plain = {key for key, value in content.items() if "#" not in key and not key.startswith("+")}
    plain = {key for key in plain if not isinstance(content[key], dict) and key not in WIRING | {"handlers"}}
    assert sorted(plain - set(declarations())) == []


def test_every_declared_setting_belongs_to_a_config():
    known = [ConfigParser.load_config_file(path) for path in CONFIGS]
    names = {name.partition("#")[0] for name in declarations()}
    assert sorted(name for name in names if not any(name in content for content in known)) == []


def test_every_declaration_says_what_the_setting_means():
    for name, declared in declarations().items():
        assert declared["description"], name
        assert describe(declared), name
        assert declared.get("notAbove", name) in declarations()


def test_choices_are_those_of_the_code():
    choices = {
        "eval_split": SECTIONS,
        "dataset": KINDS,
        "etta_adapt": get_args(Adapt),
        "rejected": REJECTED,
        "rule": get_args(Rule),
        "plane": PLANES,
        "normalization": NORMALIZATIONS,
        "support_choice": SUPPORT_CHOICES,
        "leave_out": LEAVE_OUT,
        "overlaps": OVERLAPS,
        "space": SPACES,
    }
    assert {name: tuple(declarations()[name]["enum"]) for name in choices} == choices
    assert tuple(declarations()["features"]["items"]["enum"]) == FEATURES


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("max_epochs", 1.5, "a whole number from 1"),
        ("max_epochs", 5.0, "a whole number from 1"),
        ("max_epochs", True, "a whole number from 1"),
        ("max_epochs", "5", "a whole number from 1"),
        ("seed", 2**32, "a whole number from 0 to 4294967295"),
        ("flip_prob", 2, "a number from 0 to 1"),
        ("flip_prob", math.nan, "a number from 0 to 1"),
        ("weight_decay", math.inf, "a number from 0 to 1"),
        ("learning_rate", 0, "a number above 0 to 1"),
        ("sw_overlap", 1, "a number from 0 below 1"),
        ("spacing_mm", [1, 1], "three numbers from 0.1 to 50"),
        ("spacing_mm", 1.5, "three numbers from 0.1 to 50"),
        ("spacing_mm", [1, 1, "1"], "three numbers from 0.1 to 50"),
        ("patch_size", [100, 96, 20], "three multiples of 32 from 32, one of them from 64, such as [96, 96, 32]"),
        ("patch_size", (96.0, 96, 96), "three multiples of 32 from 32, one of them from 64"),
        ("patch_size", [32, 32, 32], "three multiples of 32 from 32, one of them from 64"),
        ("network_def#feature_size", 25, "a multiple of 12 from 12, such as 24"),
        ("network_def#use_checkpoint", "false", "one of True, False"),
        ("amp", "maybe", "true or false"),
        ("amp", 1, "true or false"),
        ("dataset", "memory", "one of cache, store, plain"),
        ("dataset", "persistent", "one of cache, store, plain; persistent is now called store"),
        ("votes", 0, "a whole number from 1"),
        ("features", ["sphericity", "sphericity"], "some of normalized_volume, sphericity, eccentricity, volume_mm3, "
         "components, asymmetry, offset_x, offset_y, offset_z, relative_volume, relative_x, relative_y, relative_z, "
         "each once"),
        ("etta_adapt", "image", "one of input, weights, both"),
        ("output_dir", 5, "a path"),
        ("output_dir", "", "a path"),
        ("device", "gpu", "a device such as cuda:0 or cpu"),
        ("device", "cuda:99", "a device such as cuda:0 or cpu"),
        ("sw_device", "", "auto, or a device such as cuda:0 or cpu or '$None'"),
        ("speed", "faster", "one of accurate, fast"),
    ],
)  # fmt: skip
def test_value_out_of_its_range_is_refused_with_what_to_give(name, value, fix):
    assert problem(name, value) == f"{name} is {value!r}: give {fix}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("amp", "false"),
        ("amp", "True"),
        ("amp", False),
        ("spacing_mm", (1, 1.5, 3)),
        ("patch_size", [32, 64, 96]),
        ("sw_device", None),
        ("sw_device", "auto"),
        ("sw_device", "cpu"),
        ("device", "cpu"),
        ("etta_adapt", "both"),
        ("fold", None),
        ("pretrained", ""),
        ("learning_rate", 1e-5),
        ("weight_decay", 0),
        ("not_declared", object()),
    ],
)
def test_values_in_their_range_pass(name, value):
    assert setting_problems({name: value}) == []


def test_limits_by_other_settings():
    assert problem("val_interval", 6, max_epochs=5) == "val_interval is 6, above the 5 of max_epochs: give 5 or less"
    assert problem("votes", 3, features=["sphericity", "components"]).startswith("votes is 3, above the 2 of features")
    assert setting_problems({"val_interval": 5, "max_epochs": 5, "votes": 1, "features": ["sphericity"]}) == []


def test_limit_that_is_wrong_itself_is_the_only_problem():
    assert problem("max_epochs", 0, val_interval=5).startswith("max_epochs is 0")


def test_all_problems_are_listed():
    assert len(setting_problems({"seed": -1, "amp": "no", "max_epochs": 2})) == 2


def test_long_value_is_cut():
    assert len(problem("seed", "9" * 5000)) < 300
