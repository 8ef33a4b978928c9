import json

import pytest

from tools.pack import ROOT
from tools.portable import PATTERN, portable_problems

PORTABLE = sorted((ROOT / "bundles").glob(f"*/{PATTERN}"))


@pytest.mark.parametrize("path", PORTABLE, ids=lambda path: path.parents[1].name)
def test_portable_configs_name_monai_and_torch_alone(path):
    assert "scripts" not in path.read_text()
    assert list(portable_problems(json.loads(path.read_text()))) == []


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"a": {"_target_": "scripts.io.loading.LoadVolumed"}}, "a: component 'scripts.io.loading.LoadVolumed'"),
        ({"a": [{"_target_": "os.system", "command": "ls"}]}, "a#0: component 'os.system'"),
        ({"a": {"_target_": 3}}, "a: component 3"),
        ({"imports": ["$import subprocess"]}, "imports#0: a syntax error in '$import subprocess'"),
        ({"a": "$scripts.f(@b)"}, "a: scripts in '$scripts.f(@b)'"),
        ({"a": "$eval('1')"}, "a: eval in \"$eval('1')\""),
        ({"a": "$torch.__builtins__"}, "a: __builtins__ in '$torch.__builtins__'"),
        ({"a": "$[open(x) for x in @b]"}, "a: open in '$[open(x) for x in @b]'"),
    ],
)
def test_other_code_is_named(config, problem):
    assert list(portable_problems(config)) == [problem]


def test_allowed_code_has_no_problem():
    config = {"imports": ["$import glob", "$import torch"], "a": "$[{'image': i} for i in sorted(glob.glob(@b#c))]"}
    assert list(portable_problems({**config, "b": {"_target_": "torch.load"}, "c": {"_target_": "Spacingd"}})) == []
