"""What SECURITY.md promises, as far as no other test shows it."""

import ast
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import run

from scripts.common.errors import InputError
from scripts.models.weight_files import load_state_dict_file
from tests.conftest import ROOT, TINY, TINY_OF, bundle_workflow, run_bundle

UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
ALLOWED = {"scripts/cohort/attempts.py": {"cloudpickle.loads"}}
"""A function of a case and its result, between processes of one run."""
RULES = {
    "S102": "exec('1')",
    "S113": "import requests\nrequests.get('https://a')",
    "S202": "import tarfile\ntarfile.open('a').extractall('b')",
    "S301": "import pickle\npickle.loads(b'')",
    "S302": "import marshal\nmarshal.loads(b'')",
    "S306": "import tempfile\ntempfile.mktemp()",
    "S307": "eval('1')",
    "S314": "import xml.etree.ElementTree as tree\ntree.parse('a')",
    "S324": "import hashlib\nhashlib.md5(b'')",
    "S501": "import requests\nrequests.get('https://a', verify=False, timeout=1)",
    "S506": "import yaml\nyaml.load('', Loader=yaml.Loader)",
    "S602": "import subprocess\nsubprocess.run(input(), shell=True)",
    "S604": "def f(**_): ...\nf(shell=True)",
    "S605": "import os\nos.system(input())",
}
SOURCES = sorted(path for folder in ("scripts", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def ruff(*arguments, **options):
    words = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize("rule", RULES)
def test_lint_finds_code_that_runs_data_as_code_or_skips_checks(rule):
    found = ruff("--stdin-filename", "scripts/solf/mine.py", "-", input=f"{RULES[rule]}\n")
    assert re.search(rf"\b{rule}\b", found.stdout), found.stdout + found.stderr


def test_code_has_no_finding_of_these_rules_and_no_exception_from_them():
    assert (
        ruff("--select", "S", "--ignore", "S603,S606", "scripts", "tools", "benchmarks").stdout
        == "All checks passed!\n"
    )
    assert [path for path in SOURCES if re.search(r"noqa: [A-Z0-9, ]*\bS\d", path.read_text(encoding="utf-8"))] == []


def unsafe_calls(source):
    """List calls that may run code hidden in data, and that ruff does not know."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        owner, _, method = name.rpartition(".")
        if (owner.split(".")[0] in UNPICKLERS and method in ("load", "loads", "open", "Unpickler")) or (
            method in ("read_pickle", "Unpickler")
            or (name in ("torch.load", "torch.jit.load") and given.get("weights_only") != "True")
            or given.get("allow_pickle", "False") != "False"
        ):
            found.append(name)
    return found


UNSAFE = [
    "cloudpickle.loads(b'')",
    "joblib.load('a')",
    "pickle.Unpickler(a)",
    "shelve.open('a')",
    "pd.read_pickle('a')",
]
UNSAFE += ["shelve.open('a')", "np.load('a', allow_pickle=True)", "torch.jit.load('a')", "torch.load('a')"]
UNSAFE += [f"torch.load('a', weights_only={value})" for value in ("False", "None", "trusted")]


@pytest.mark.parametrize("line", UNSAFE)
def test_unsafe_calls_are_found(line):
    assert unsafe_calls(line) == [line.partition("(")[0]]


def test_safe_calls_are_not_found():
    assert unsafe_calls("torch.load(a, weights_only=True); np.load(a); cloudpickle.dumps(a); json.loads(a)") == []


def test_data_are_unpickled_between_processes_of_one_run_only():
    found = {path.relative_to(ROOT).as_posix(): set(unsafe_calls(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert {path: calls for path, calls in found.items() if calls} == ALLOWED


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_weights_with_code_are_refused_without_running_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "extra": Evil()}, "model.pt")
    with pytest.raises(InputError, match="holds pickled code"):
        load_state_dict_file("model.pt")
    assert not Path("executed").exists()


def test_configs_are_code_and_monai_warns_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps({"run": ["$__import__('pathlib').Path('executed').touch()"]}))
    with pytest.warns(UserWarning, match="Only proceed if this config is from a source you trust"):
        run(config_file="config.json", run_id="run")
    assert Path("executed").exists()


@pytest.fixture
def no_network(monkeypatch):
    """Refuse connections and look-ups of names; local sockets without a network are not affected."""

    def refuse(*arguments):
        raise AssertionError(f"network access: {arguments}")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse, raising=False)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.usefixtures("no_network")
def test_filter_is_fitted_and_used_without_network(label_data, tmp_path):
    folders = {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "fit")}
    run_bundle("solf_filter", ["train.json"], dataset_dir=str(label_data), **folders, **TINY_OF["solf_filter"])
    given = {"input": str(label_data), "output_dir": str(tmp_path / "out"), "ckpt_path": str(tmp_path / "model.pt")}
    run_bundle("solf_filter", ["inference.json"], workers=0, qc=True, **given)
    assert (tmp_path / "out" / "qc" / "index.html").is_file()


@pytest.mark.usefixtures("no_network")
def test_images_are_segmented_without_network(torso_data, tmp_path):
    given = {**TINY, "input": str(min((torso_data / "imagesTr").iterdir())), "output_dir": str(tmp_path / "out")}
    workflow = bundle_workflow("swin_bob_btcv", ["inference.json"], kind="infer", **TINY)
    workflow.initialize()
    torch.save(workflow.network_def.state_dict(), tmp_path / "model.pt")
    run_bundle("swin_bob_btcv", ["inference.json"], ckpt_path=str(tmp_path / "model.pt"), **given)
    assert list((tmp_path / "out").rglob("*_seg.nii.gz"))


def test_versions_of_all_packages_are_fixed():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith(("#", "-"))]
    assert [line for line in packages if not re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.+]+( *[#;].*)?", line)] == []
