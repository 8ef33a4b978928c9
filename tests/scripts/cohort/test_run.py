import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import nibabel as nib
import numpy as np
import psutil
import pytest

from scripts.cohort import engine
from scripts.cohort import journal as journal_module
from scripts.cohort import run as run_module
from scripts.cohort.attempts import CaseResult
from scripts.cohort.journal import Journal
from scripts.cohort.run import run_cohort
from scripts.common.errors import InputError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import what tests import
THREADS = "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"
ROOT = Path(__file__).resolve().parents[3]


def voxel_counts(case):
    """Count the voxels of each label with code of the package, and record the call and its process in a file."""
    import uuid
    from pathlib import Path

    from scripts.common.label_maps import count_voxels
    from scripts.io.nifti import read_nifti

    if "calls" in case:
        Path(case["calls"], f"{case['case']}.{os.getpid()}.{uuid.uuid4().hex}").touch()
    return count_voxels(read_nifti(case["image"]).stored).tobytes()


def probe(case):
    """Crash, raise, describe the process, or count."""
    if case["case"] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if case["case"] == "bug":
        return {}["missing key"]
    if case["case"] != "environment":
        return voxel_counts(case)
    parent = psutil.Process().parent()
    listening = [c.laddr.ip for p in (parent, psutil.Process()) for c in p.net_connections("inet") if not c.raddr]
    return json.dumps([listening, [os.environ[name] for name in THREADS]]).encode()


@pytest.fixture
def cases(tmp_path):
    return write_maps(tmp_path, 12)


def write_maps(folder, count):
    rng, maps = np.random.default_rng(0), folder / "maps"
    maps.mkdir()
    (folder / "calls").mkdir()
    for index in range(count):
        label = rng.integers(0, 4, (9, 8, 7)).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, np.diag([2.0, 2, 3, 1])), maps / f"m{index:02d}.nii")
    return [{"case": p.stem, "image": str(p), "calls": str(folder / "calls")} for p in sorted(maps.iterdir())]


def calls(folder):
    return [path.name.split(".") for path in (folder / "calls").iterdir()]


def run(function, cases, path, **options):
    """Run a cohort and return its failures and all payloads as one."""
    with Journal(path, settings="test") as journal:
        failures = run_cohort(function, cases, journal=journal, **options)
        return failures, b"".join(name.encode() + payload for name, payload in journal.payloads(cases))


def test_corrupt_case_does_not_stop_the_run_and_is_tried_again(cases, tmp_path):
    path, good = Path(cases[3]["image"]), Path(cases[3]["image"]).read_bytes()
    path.write_bytes(good[:400])
    failures, found = run(voxel_counts, cases, tmp_path / "j.sqlite", workers=0)
    assert list(failures) == ["m03"]
    assert "cannot be read whole" in failures["m03"]
    path.write_bytes(good)
    failures, fixed = run(voxel_counts, cases, tmp_path / "j.sqlite", workers=0)
    assert failures == {}
    assert fixed.replace(b"m03" + voxel_counts(cases[3]), b"") == found
    assert sorted(name for name, *_ in calls(tmp_path)) == sorted([case["case"] for case in cases] + ["m03", "m03"])


def test_case_whose_other_results_are_gone_is_processed_again(cases, tmp_path):
    run(voxel_counts, cases, tmp_path / "j.sqlite", workers=0)
    run(voxel_counts, cases, tmp_path / "j.sqlite", workers=0, is_finished=lambda case: case["case"] != "m05")
    assert sorted(name for name, *_ in calls(tmp_path)) == sorted([case["case"] for case in cases] + ["m05"])


@pytest.mark.parametrize(
    ("names", "workers", "message"),
    [
        (["a", "b", "a"], 0, '2 cases are named "a": give each a distinct name.'),
        (["a", "z\udcff"], 0, r"case 'z\udcff': its name is not valid UTF-8; rename the file."),
        (["a"], -2, "workers is -2: give a number of processes, -1 for one per core, or 0 for none."),
    ],
)
def test_wrong_settings_are_named(tmp_path, names, workers, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run(voxel_counts, [{"case": name, "image": ""} for name in names], tmp_path / "j.sqlite", workers=workers)


def test_result_that_is_not_bytes_is_a_failure(tmp_path):
    failures, _ = run(lambda case: "text", [{"case": "a", "image": ""}], tmp_path / "j.sqlite", workers=0)
    assert failures == {"a": "TypeError: the function returned str, not bytes"}


def test_no_case_starts_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LocalCluster", None)
    assert run(voxel_counts, [], tmp_path / "j.sqlite", workers=2) == ({}, b"")


@pytest.mark.parametrize("workers", [0, 1])
def test_bug_is_logged_with_its_traceback_and_bad_input_without(cases, tmp_path, monkeypatch, workers):
    logged = {}  # not caplog, whose handler Dask silences

    def record(message, case, *values):
        logged[case] = message % (case, *values)

    monkeypatch.setattr(run_module.logger, "error", record)
    Path(cases[0]["image"]).write_bytes(b"")
    failures, _ = run(probe, [cases[0], {"case": "bug", "image": ""}], tmp_path / "j.sqlite", workers=workers)
    bad_input = f"{cases[0]['image']}: cannot be read whole (0 bytes); copy or export it again."
    assert failures == {"m00": bad_input, "bug": "KeyError: 'missing key'"}
    assert logged["m00"] == f"case m00 failed: {bad_input}"
    assert logged["bug"].startswith("case bug failed: KeyError: 'missing key'\nTraceback (most recent call last):")
    assert 'return {}["missing key"]' in logged["bug"]


def test_worker_that_crashes_fails_one_case_and_no_other(cases, tmp_path):
    Path(cases[3]["image"]).write_bytes(b"")
    some = [*cases[:6], {"case": "crash", "image": ""}, *cases[6:], {"case": "environment", "image": ""}]
    before = dict(os.environ)
    with Journal(tmp_path / "j.sqlite", settings="") as journal:
        failures = run_cohort(probe, some, journal=journal, workers=2)
        found = dict(journal.payloads(some))
    assert failures == {
        "m03": f"{cases[3]['image']}: cannot be read whole (0 bytes); copy or export it again.",
        "crash": "its process crashed twice, the second time with SIGSEGV",
    }
    addresses, threads = json.loads(found.pop("environment"))
    assert len(addresses) > 2
    assert set(addresses) == {"127.0.0.1"}
    assert threads == ["1", "1"]
    assert dict(os.environ) == before
    assert found == {case["case"]: voxel_counts(case) for case in cases if case["case"] != "m03"}


def run_until_killed(function, cases, path, workers):
    journal_module.COMMIT_SECONDS = 0.05
    run(function, cases, path, workers=workers)


def slow_counts(case):
    time.sleep(0.03)
    return voxel_counts(case)


def start_run(cases, path, workers):
    """Start a run in a separate process that has imported the modules already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=run_until_killed, args=(slow_counts, cases, path, workers))
    process.start()
    return process


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail("timed out")
        time.sleep(0.01)


def finished(cases, path):
    with Journal(path, settings="test") as journal:
        return journal.finished(cases)


def test_resumed_runs_repeat_no_finished_case_and_give_the_same_bytes(tmp_path):
    cases, path, rng, seen = write_maps(tmp_path, 40), tmp_path / "j.sqlite", random.Random(0), [0]
    for workers in (0, 0, 0, 1):
        done, known = finished(cases, path), calls(tmp_path)
        process = start_run(cases, path, workers)
        enough = len(known) + rng.randint(3, 9)
        wait_for(lambda enough=enough: len(calls(tmp_path)) > enough)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        wait_for(lambda: not any(psutil.pid_exists(int(pid)) for _, pid, _ in calls(tmp_path)))
        assert not done & {call[0] for call in calls(tmp_path) if call not in known}
        seen.append(len(finished(cases, path)))
    assert 0 < seen[1] < seen[2] < seen[3] < seen[4] < 40
    done, known = finished(cases, path), calls(tmp_path)
    resumed = run(voxel_counts, cases, path, workers=0)
    again = [call[0] for call in calls(tmp_path) if call not in known]
    assert sorted(again) == sorted({case["case"] for case in cases} - done)
    assert resumed == run(voxel_counts, cases, tmp_path / "undisturbed.sqlite", workers=0)


def start_dask(what, *arguments, folder):
    """Start a scheduler or a worker as its user does, in a folder from which `scripts` cannot be imported."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments, "--no-dashboard"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = (folder / "dask.log").open("a")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


@pytest.fixture
def scheduler(tmp_path):
    """A Dask scheduler: its address and its process."""
    folder = tmp_path / "dask"
    folder.mkdir()
    file = folder / "scheduler.json"
    process = start_dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", file, folder=folder)
    wait_for(lambda: file.exists() and file.read_text().rstrip().endswith("}"))  # Dask writes it piece by piece
    yield json.loads(file.read_text())["address"], process
    process.kill()
    process.wait()


def counts_of_two_workers(case):
    """Wait until two processes have recorded a call."""
    found = voxel_counts(case)
    while len({path.name.split(".")[1] for path in Path(case["calls"]).iterdir()}) < 2:
        time.sleep(0.05)
    return found


def test_scheduler_with_a_late_worker_gives_the_same_bytes(cases, tmp_path, scheduler):
    address, folder = scheduler[0], tmp_path / "dask"
    options = (address, "--nthreads", "1", "--host", "127.0.0.1", "--local-directory", folder)
    workers = [start_dask("worker", *options, folder=folder)]

    def join_late():
        wait_for(lambda: calls(tmp_path))
        workers.append(start_dask("worker", *options, folder=folder))

    late = threading.Thread(target=join_late)
    late.start()
    try:
        found = run(counts_of_two_workers, cases, tmp_path / "far.sqlite", scheduler=address)
    finally:
        late.join()
        for process in workers:
            process.terminate()
    assert len({pid for _, pid, _ in calls(tmp_path)}) == 2
    assert found == run(voxel_counts, cases, tmp_path / "near.sqlite", workers=0)
    for process in workers:
        process.wait(20)


def test_lost_scheduler_is_an_input_error(cases, scheduler):
    address, process = scheduler
    with (
        pytest.raises(InputError, match=f"^{address}: the Dask scheduler was lost .*; run again once it is back"),
        engine.remote_client(address) as client,
    ):
        engine.run_on_dask(client, voxel_counts, cases, remote=True, record=None, tick=process.kill)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere"])
def test_unreachable_scheduler_is_an_input_error(cases, tmp_path, monkeypatch, address):
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match=f"^scheduler {address}: no Dask scheduler answers there"):
        run(voxel_counts, cases, tmp_path / "j.sqlite", scheduler=address)


def test_case_that_keeps_losing_its_worker_is_given_up(cases, monkeypatch):
    class Losing(engine._Flight):
        def __init__(self, *_, **__):
            self.cases, self.sent = {}, []

        def free_slots(self):
            return 1

        def start(self, cases, *, alone=False):
            self.cases |= {case["case"]: case for case in cases}
            self.sent += [(case["case"], alone) for case in cases]

        def collect(self):
            return [(self.cases.popitem()[1], None)]

    flights, outcomes = [], []
    monkeypatch.setattr(engine, "_Flight", lambda *a, **k: flights.append(Losing()) or flights[0])

    class FakeClient:
        scheduler = type("", (), {"address": "tcp://x"})

    options = {"remote": False, "record": lambda case, outcome: outcomes.append(outcome), "tick": lambda: None}
    engine.run_on_dask(FakeClient, voxel_counts, cases[:1], **options)
    assert flights[0].sent == [("m00", False), ("m00", True), ("m00", True)]
    assert outcomes == [CaseResult(b"", "its worker was lost 3 times")]


@pytest.mark.parametrize(("status", "value"), [("lost", None), ("finished", None)])
def test_result_that_was_lost_with_its_worker_does_not_mean_a_lost_scheduler(cases, status, value):
    """Another case crashed the worker after this one was finished and before its result was fetched."""

    class FakeFuture:
        key = "case-1"

        def exception(self):
            raise AssertionError("would wait forever")

    class FakeClient:
        status = "running"

        def gather(self, futures, errors):
            return dict.fromkeys(futures, value)

    future = FakeFuture()
    future.status = status
    flight = engine._Flight(FakeClient(), voxel_counts, folder="")
    flight.cases[future] = cases[0]
    flight.finished.put(future)
    assert flight.collect() == [(cases[0], None)]
    assert not flight.cases


def test_package_imports_only_common_and_names_no_user_of_it():
    files = sorted((ROOT / "scripts" / "cohort").glob("*.py"))
    imported = {part for file in files for part in re.findall(r"scripts\.(\w+)", file.read_text())}
    assert imported <= {"cohort", "common"}
    assert len(files) > 4
    assert not [file.name for file in files if re.search(r"solf|label|thresholds|organ", file.read_text(), re.I)]
