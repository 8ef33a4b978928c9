"""Ctrl-C and SIGTERM at any moment: one line, exit code 130 or 143 (0 of a training that was saved), no rest left."""

import signal
import subprocess
import sys
import threading

import psutil
import pytest
import torch

from tests.conftest import PAPER, ROOT, TINY, bundle_workflow, command_line, run_bundle, training_settings

BTCV, FILTER = "swin_bob_btcv", "solf_filter"
MESSAGE = "what was finished is kept; a training continues with resume true"
NAMES = {signal.SIGINT: ("Ctrl-C", (130, -signal.SIGINT)), signal.SIGTERM: ("SIGTERM", (143,))}
"""Exit codes as Python gives them: a process that a signal ended is 130 to a shell."""
MOMENTS = {"start": ("input summary", 0.5), "first case": ("0/", 0.2), "working": ("0/", 3.0)}
"""Text that the command prints, and seconds after it."""


@pytest.fixture(scope="module")
def models(label_data, tmp_path_factory):
    """Untrained weights of the network, and a fitted filter."""
    folder = tmp_path_factory.mktemp("models")
    workflow = bundle_workflow(BTCV, ["inference.json"], kind="infer", **TINY)
    workflow.initialize()
    torch.save(workflow.network_def.state_dict(), folder / "btcv.pt")
    settings = {"dataset_dir": str(label_data), "ckpt_dir": str(folder), "output_dir": str(folder / "fit")}
    run_bundle(FILTER, ["train.json"], **settings, **PAPER, workers=0, qc="false", epsilon_percent=20)
    return {BTCV: str(folder / "btcv.pt"), FILTER: str(folder / "model.pt")}


def commands(torso_data, label_data, models, folder):
    """Return name to bundle, config and settings."""
    out = {"output_dir": str(folder / "out")}
    train = training_settings(torso_data, folder, max_epochs=200, num_workers=2)
    cached = {**train, "dataset": "store", "cache_dir": str(folder / "cache")}
    segment = {**TINY, **out, "input": str(torso_data / "imagesTr"), "num_workers": 1, "sw_overlap": 0.9}
    fit = {**out, "dataset_dir": str(label_data), "ckpt_dir": str(folder / "models"), **PAPER, "epsilon_percent": 20}
    return {
        "training": (BTCV, "train.json", train),
        "training with a cache": (BTCV, "train.json", cached),
        "segmenting": (BTCV, "inference.json", {**segment, "ckpt_path": models[BTCV]}),
        "fitting": (FILTER, "train.json", {**fit, "workers": 2}),
        "cleaning": (FILTER, "inference.json", {**out, "input": str(label_data), "ckpt_path": models[FILTER]}),
    }


def stop_at(process, moment, number):
    """Send a signal a while after a text was printed, to the whole group as a terminal does with Ctrl-C.

    Returns:
        What the process printed.
    """
    text, seconds = MOMENTS[moment]
    printed = ""
    while text not in printed and (character := process.stdout.read(1)):
        printed += character
    timer = threading.Timer(seconds, lambda: send(process, number))
    timer.start()
    printed += process.stdout.read()
    timer.join()
    return printed


def accept_ctrl_c():
    """Undo what a shell does to programs that it starts in the background, so that these tests may run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def send(process, number):
    children = psutil.Process(process.pid).children(recursive=True) if number == signal.SIGINT else []
    for running in [psutil.Process(process.pid), *children]:
        running.send_signal(number)


@pytest.mark.hostile
@pytest.mark.parametrize("number", NAMES, ids=[name for name, _ in NAMES.values()])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["training", "training with a cache", "segmenting", "fitting", "cleaning"])
def test_stopped_command_leaves_one_line_and_nothing_half_written(
    torso_data, label_data, models, tmp_path, name, moment, number
):
    bundle, config, settings = commands(torso_data, label_data, models, tmp_path)[name]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"configs/{config}"]
    folder = ROOT / "bundles" / bundle
    process = subprocess.Popen(
        [*command, *command_line(settings)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=accept_ctrl_c,
    )
    printed = stop_at(process, moment, number)
    code = process.wait(60)
    if code == 0 and name.startswith("training") and number == signal.SIGTERM:
        assert "set resume to true to go on" in printed
    elif code == 0:
        pytest.skip("ended before the signal")
    described, expected = NAMES[number]
    assert code in (0, *expected), printed
    assert code == 0 or f"\nstopped by {described}: {MESSAGE}\n" in printed
    assert "Traceback" not in printed
    left = [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert left == []
    assert [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])] == []
