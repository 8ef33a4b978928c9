"""Own worker processes, and schedulers of others."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import dask
import psutil
import pytest

from scripts.cohort import engine
from scripts.cohort.attempts import CaseResult
from scripts.common.errors import InputError
from tests.scripts.cohort.counted_maps import calls, run, voxel_counts, wait_for

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def start_dask(what, *arguments, folder):
    """Start a scheduler or a worker as its user does, in a folder from which `scripts` cannot be imported."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments, "--no-dashboard"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = (folder / "dask.log").open("a")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


@contextmanager
def started_scheduler(folder, *arguments, protocol="tcp"):
    """Start a Dask scheduler: its address and its process."""
    file, host = folder / "scheduler.json", f"{protocol}://127.0.0.1"
    options = ("--host", host, "--port", "0", "--scheduler-file", file)
    process = start_dask("scheduler", *options, *arguments, folder=folder)
    wait_for(lambda: file.exists() and file.read_text().rstrip().endswith("}"))  # Dask writes it piece by piece
    yield json.loads(file.read_text())["address"], process
    process.kill()
    process.wait()


@pytest.fixture
def scheduler(tmp_path):
    folder = tmp_path / "dask"
    folder.mkdir()
    with started_scheduler(folder) as found:
        yield found


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


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://no such host:9", "tcp://a..b:9"])
def test_unreachable_scheduler_is_an_input_error(cases, tmp_path, monkeypatch, address):
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match=f"^scheduler {address}: no Dask scheduler answers there"):
        run(voxel_counts, cases, tmp_path / "j.sqlite", scheduler=address)


NO_ADDRESSES = [
    "nowhere",
    "127.0.0.1:8786",
    "http://127.0.0.1:8787",
    "TCP://127.0.0.1:8786",
    "tcp://me:x@127.0.0.1:8786",
]
NO_ADDRESSES += [
    f"tcp://{where}" for where in ("127.0.0.1", "h:x", "h:99999", "h:-5", "h:0", ":8786", "::1:8786", "h:1/")
]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_scheduler_that_is_not_an_address_is_refused(cases, tmp_path, address):
    with pytest.raises(InputError, match=re.escape(f"scheduler is '{address}': give an address such as tcp://host:")):
        run(voxel_counts, cases, tmp_path / "j.sqlite", scheduler=address)


def test_scheduler_that_is_not_text_is_refused(cases, tmp_path):
    with pytest.raises(InputError, match="scheduler is 8786: give text"):
        run(voxel_counts, cases, tmp_path / "j.sqlite", scheduler=8786)


def test_server_that_is_not_a_scheduler_is_an_input_error(cases, tmp_path, monkeypatch):
    """Such as Dask's own dashboard: a Dask client would wait for its greeting forever."""
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="TimeoutError: no greeting within 1 seconds"):
            run(voxel_counts, cases, tmp_path / "j.sqlite", scheduler=address)


def test_scheduler_without_encryption_on_another_host_is_warned_of(scheduler, caplog, monkeypatch):
    with engine.remote_client(scheduler[0]):
        assert not caplog.messages
    monkeypatch.setattr(engine, "_is_loopback", lambda host: False)
    with engine.remote_client(scheduler[0]):
        pass
    assert caplog.messages == [
        f"{scheduler[0]}: whoever can reach this scheduler can run code as you; protect it by tls://"
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_host_is_this_one(host):
    assert engine._is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1.example.org", "localhost.example.org"])
def test_host_may_be_another_one(host):
    assert not engine._is_loopback(host)


def make_certificates(folder):
    """Make an authority and a certificate of it, and another authority."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    new = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key"]
    for name, options in (("ca", []), ("other", []), ("own", signed)):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"]
        subprocess.run(["openssl", "req", "-x509", *new, *files, *options], cwd=folder, check=True, capture_output=True)


def tls_settings(folder, authority="ca"):
    files = {
        "ca-file": folder / f"{authority}.pem",
        "client.cert": folder / "own.pem",
        "client.key": folder / "own.key",
    }
    return dask.config.set({f"distributed.comm.tls.{name}": str(file) for name, file in files.items()})


def test_scheduler_with_tls_gives_the_same_bytes_and_refuses_others(cases, tmp_path):
    folder = tmp_path / "dask"
    folder.mkdir()
    make_certificates(folder)
    own = ["--tls-ca-file", "ca.pem", "--tls-cert", "own.pem", "--tls-key", "own.key"]
    with started_scheduler(folder, *own, protocol="tls") as (address, _):
        worker = start_dask("worker", address, *own, "--nthreads", "1", "--host", "tls://127.0.0.1", folder=folder)
        try:
            with tls_settings(folder):
                found = run(voxel_counts, cases, tmp_path / "far.sqlite", scheduler=address)
        finally:
            worker.terminate()
        assert found == run(voxel_counts, cases, tmp_path / "near.sqlite", workers=0)
        with pytest.raises(InputError, match="no certificates for tls; set the variables DASK_"):
            run(voxel_counts, cases, tmp_path / "j.sqlite", scheduler=address)
        with tls_settings(folder, "other"), pytest.raises(InputError, match="CERTIFICATE_VERIFY_FAILED"):
            run(voxel_counts, cases, tmp_path / "j.sqlite", scheduler=address)
        with pytest.raises(InputError, match="no Dask scheduler answers there"):
            run(voxel_counts, cases, tmp_path / "j.sqlite", scheduler=address.replace("tls", "tcp"))
        worker.wait(20)


def test_own_scheduler_and_workers_use_no_network():
    """All sockets of all processes lie on the loopback interface, connections among them too."""
    with engine.local_client(2) as client:
        client.submit(sum, [1, 2]).result()
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        sockets = [socket for process in processes for socket in process.net_connections("inet")]
    assert len(processes) >= 3
    assert {socket.laddr.ip for socket in sockets} == {"127.0.0.1"}
    assert {socket.raddr.ip for socket in sockets if socket.raddr} == {"127.0.0.1"}


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
