import os
import subprocess
import sys

import pytest
import torch

from scripts.common import threads
from tests.conftest import ROOT


@pytest.fixture
def started(monkeypatch):
    """Record the programs that would be started; two threads, no GPU, none of the settings."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(threads, "is_bundle_run", lambda: True)
    for name in threads.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_program_is_started_again_with_its_arguments_and_the_settings(started):
    threads.restart_with_settings()
    ((program, arguments, environment),) = started
    assert program == sys.executable
    assert arguments[1:] == sys.orig_argv[1:]
    assert environment == {**os.environ, **threads.SETTINGS}


def test_what_the_user_set_is_kept(started, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.restart_with_settings()
    assert started[0][2]["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize("reason", ["all set", "one thread", "a GPU", "another system", "another program"])
def test_program_is_not_started_again(reason, started, monkeypatch):
    if reason == "all set":
        for name, value in threads.SETTINGS.items():
            monkeypatch.setenv(name, value)
    elif reason == "one thread":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    elif reason == "a GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    elif reason == "another program":
        monkeypatch.setattr(threads, "is_bundle_run", lambda: False)
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    threads.restart_with_settings()
    assert started == []


def test_run_of_a_bundle_is_started_again_once(tmp_path):
    words = [
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        "configs/inference.json",
        "--input",
        str(tmp_path / "no.nii"),
    ]
    bare = {name: value for name, value in os.environ.items() if name not in threads.SETTINGS}
    bundle = ROOT / "bundles" / "swin_bob_btcv"
    done = subprocess.run([sys.executable, *words], cwd=bundle, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("restarting with OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_MAX_=0") == 1
    assert done.stderr.count("no.nii: no such file or folder") == 1


def test_make_gives_the_same_settings():
    lines = (ROOT / "Makefile").read_text().splitlines()
    given = dict(line.removeprefix("export ").split(" ?= ") for line in lines if " ?= " in line and "export" in line)
    assert given == threads.SETTINGS
