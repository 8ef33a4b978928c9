import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import cloudpickle
import psutil
import pytest

from scripts.cohort import engine
from scripts.cohort import journal as journal_module
from scripts.cohort import run as run_module
from scripts.cohort.journal import Journal
from scripts.cohort.run import run_cohort
from scripts.common.errors import InputError
from tests.scripts.cohort.counted_maps import calls, run, voxel_counts, wait_for, write_maps

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import what tests import
THREADS = "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"
ROOT = Path(__file__).resolve().parents[3]


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
        (["a"], -2, "workers is -2: give a whole number from -1"),
        (["a"], True, "workers is True: give a whole number from -1"),
        (["a"], 10**6, "workers is 1000000: this machine has"),
    ],
)
def test_wrong_settings_are_named(tmp_path, names, workers, message):
    with pytest.raises(InputError, match=re.escape(message)):
        run(voxel_counts, [{"case": name, "image": ""} for name in names], tmp_path / "j.sqlite", workers=workers)


def test_result_that_is_not_bytes_is_a_failure(tmp_path):
    failures, _ = run(lambda case: "text", [{"case": "a", "image": ""}], tmp_path / "j.sqlite", workers=0)
    assert failures == {"a": "TypeError: the function returned str, not bytes"}


@pytest.mark.parametrize("workers", [0, 2])
def test_file_that_changes_while_it_is_processed_fails_alone_and_is_tried_again(cases, tmp_path, workers):
    def changing(case):
        if case["case"] == "m02":
            os.utime(case["image"])
        return voxel_counts(case)

    failures, _ = run(changing, cases, tmp_path / "j.sqlite", workers=workers)
    assert failures == {"m02": f"{cases[2]['image']}: changed while it was processed; run again."}
    failures, found = run(voxel_counts, cases, tmp_path / "j.sqlite", workers=workers)
    assert failures == {}
    assert b"m02" in found


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


def test_package_imports_only_common_and_names_no_user_of_it():
    files = sorted((ROOT / "scripts" / "cohort").glob("*.py"))
    imported = {part for file in files for part in re.findall(r"scripts\.(\w+)", file.read_text())}
    assert imported <= {"cohort", "common"}
    assert len(files) > 4
    assert not [file.name for file in files if re.search(r"solf|label|thresholds|organ", file.read_text(), re.I)]
