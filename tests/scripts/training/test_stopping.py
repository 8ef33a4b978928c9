import os
import signal
import subprocess
import sys

import pytest
import torch

from scripts.training import stopping
from tests.conftest import ROOT
from tests.scripts.training.small_training import PATH, signal_at, train

STEPS = 4  # of an epoch: 7 cases, 2 at once


@pytest.fixture
def listening(monkeypatch):
    monkeypatch.setattr(stopping, "is_bundle_run", lambda: True)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[name])
        else:
            assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name], name


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("step", range(1, 3 * STEPS + 1))
def test_run_that_a_signal_stopped_at_any_step_goes_on_to_the_same_state(step, accumulate, listening, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole", accumulate=accumulate)
    stopped = train(tmp_path, on_step=signal_at(step), accumulate=accumulate)
    in_epoch = step % STEPS
    kept = step if not in_epoch else step - in_epoch % accumulate
    assert (stopped["epoch"], stopped["iteration"]) == (step // STEPS, kept)
    assert stopped["validation_due"] is not bool(in_epoch)
    assert_same(train(tmp_path, resume=True, accumulate=accumulate), whole)
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "whole" / "model.pt").read_bytes()


@pytest.mark.parametrize("case", [1, 2, 3])
def test_validation_that_a_signal_stopped_is_repeated_by_the_resumed_run(case, listening, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole")
    cases = []

    def on_case(engine):
        cases.append(engine.state.epoch)
        if (engine.state.epoch, engine.state.iteration) == (2, case):
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(tmp_path, on_case=on_case)
    assert cases == [1, 1, 1, *[2] * case]
    assert (stopped["epoch"], stopped["iteration"], stopped["validation_due"]) == (2, 2 * STEPS, True)
    assert stopped["best_metric_epoch"] == 1
    again = train(tmp_path, resume=True, on_case=on_case)
    assert_same(again, stopped)
    assert_same(train(tmp_path, resume=True), whole)


def test_run_goes_on_with_another_number_of_workers(listening, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole")
    train(tmp_path, on_step=signal_at(6), workers=2)
    assert_same(train(tmp_path, resume=True, workers=1), whole)


def test_workers_survive_the_signal_that_a_scheduler_sends_to_all_processes(listening, tmp_path):
    import psutil

    def on_step(engine):
        if engine.state.iteration == 2:
            for process in [*psutil.Process().children(recursive=True), psutil.Process()]:
                if "resource_tracker" not in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGTERM)

    assert train(tmp_path, on_step=on_step, workers=2)["iteration"] == 2


FAILS_WITH_WORKERS = """
from pathlib import Path
from tests.scripts.training.small_training import stopping, train

workers = []

def fail(engine):
    workers.append(engine._dataloader_iter)
    raise ValueError("a bug")

stopping.is_bundle_run = lambda: True
train(Path({folder!r}), on_step=fail, workers=2)
"""


def test_program_whose_training_failed_ends_though_workers_are_left(tmp_path):
    code = FAILS_WITH_WORKERS.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "a bug" in done.stderr) == (1, True), done.stderr


def test_signals_have_their_former_handlers_after_the_run(listening, tmp_path):
    earlier = [signal.getsignal(number) for number in stopping.SIGNALS]
    train(tmp_path, on_step=signal_at(2), max_epochs=1)
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == earlier


def test_other_programs_keep_their_signals(tmp_path):
    seen = []
    earlier = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        assert train(tmp_path, on_step=signal_at(2), max_epochs=1)["epoch"] == 1
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert seen == [1]


def two_processes(folder, *, resume=False, step=0, rank=1, code=0):
    folder.mkdir(exist_ok=True)
    module = "tests.scripts.training.small_training"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module]
    arguments = [str(folder), str(resume).lower(), str(step), str(rank)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return torch.load(folder / PATH, weights_only=True)


def test_signal_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path):
    whole = two_processes(tmp_path / "whole")
    stopped = two_processes(tmp_path / "stopped", step=3, rank=1)
    assert (stopped["epoch"], stopped["epoch_length"], stopped["iteration"]) == (1, 2, 3)
    assert_same(two_processes(tmp_path / "stopped", resume=True), whole)


def test_sigterm_to_torchrun_lets_both_processes_save(tmp_path):
    stopped = two_processes(tmp_path / "stopped", step=3, rank="torchrun", code=1)
    assert (stopped["epoch"], stopped["iteration"]) == (1, 3)
    resumed = two_processes(tmp_path / "stopped", resume=True)
    assert_same(resumed, two_processes(tmp_path / "whole"))
