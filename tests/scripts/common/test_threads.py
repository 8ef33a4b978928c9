import os
import sys

import pytest
import torch

from scripts.common import threads


@pytest.fixture
def started(monkeypatch):
    """Record the programs that would be started; two threads, no GPU, none of the settings."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
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


@pytest.mark.parametrize("reason", ["all set", "one thread", "a GPU", "another system"])
def test_program_is_not_started_again(reason, started, monkeypatch):
    if reason == "all set":
        for name, value in threads.SETTINGS.items():
            monkeypatch.setenv(name, value)
    elif reason == "one thread":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    elif reason == "a GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    threads.restart_with_settings()
    assert started == []
