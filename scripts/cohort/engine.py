"""Run cases on Dask: on worker processes of this machine or on an existing cluster."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import queue
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import cloudpickle
import dask
from distributed import Client, Future, KilledWorker, LocalCluster
from distributed.comm import connect
from distributed.comm.addressing import parse_host_port
from distributed.security import Security

from scripts.cohort.attempts import CaseFunction, CaseResult, failed_outcome
from scripts.cohort.journal import Case
from scripts.cohort.shipping import ROOT, ship_code, worker_task
from scripts.common.errors import InputError, reason

CONNECT_SECONDS = 10
WAKE_SECONDS = 1.0
REMINDER_SECONDS = 60
MIN_IN_FLIGHT, IN_FLIGHT_PER_THREAD = 16, 4
MAX_LOSSES = 3
_SETTINGS = {
    "distributed.worker.profile.enabled": False,
    # Dask's nannies make workers return freed memory at once; every volume would then cause new page faults
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**28,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**25,
}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
logger = logging.getLogger(__name__)

FinishedCase = tuple[Case, CaseResult | None]
"""A case and its outcome, None if its worker was lost."""


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """Start worker processes of one thread each on this machine; they listen on 127.0.0.1 only.

    They exit with this process, even if it is killed: each watches a pipe that the kernel then closes.

    Args:
        workers: number of processes.
    """
    options = {"host": "127.0.0.1", "dashboard_address": None, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    scheduler = {"dashboard_address": "127.0.0.1:0", "allowed_failures": 0}
    with _quiet(), _one_thread_each(), dask.config.set(_SETTINGS):
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, scheduler_kwargs=scheduler, **options)
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client


@contextmanager
def remote_client(address: str) -> Iterator[Client]:
    """Connect to a Dask scheduler.

    Args:
        address: `tcp://host:8786`, or `tls://host:8786` with the certificates that Dask's configuration names.

    Raises:
        InputError: it is not an address, no scheduler answers there, or there are no certificates.
    """
    host = _checked_host(address)
    with _quiet():
        try:
            with ThreadPoolExecutor(1) as thread:  # not here, where an event loop may run, as in a notebook
                thread.submit(asyncio.run, _shake_hands(address)).result()
            client = Client(address, timeout=CONNECT_SECONDS, security=Security(), set_as_default=False)
        except (OSError, ValueError, RuntimeError, ImportError) as error:  # ImportError: other versions there
            raise InputError(
                f"scheduler {address}: no Dask scheduler answers there ({reason(error)}); start `dask scheduler`, "
                "and give the address that it prints and, for tls, certificates that fit."
            ) from error
        if address.startswith("tcp") and not _is_loopback(host):
            logger.warning("%s: whoever can reach this scheduler can run code as you; protect it by tls://", address)
        try:
            yield client
        finally:
            client.close(timeout=WAKE_SECONDS)


def _checked_host(address: str) -> str:
    """Return the host of an address.

    Raises:
        InputError: it is not an address, or Dask's configuration names no certificates for it.
    """
    scheme, _, location = address.rpartition("://")
    try:
        host, port = parse_host_port(location)
    except ValueError:
        host, port = "", 0
    if scheme not in ("tcp", "tls") or not host or not 0 < port < 2**16:
        raise InputError(f"scheduler is {address!r:.200}: give an address such as tcp://host:8786.")
    if scheme == "tls" and not (Security().tls_ca_file and Security().tls_client_cert):
        names = [f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")]
        raise InputError(f"scheduler {address}: no certificates for tls; set the variables {', '.join(names)}.")
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _shake_hands(address: str) -> None:
    """Connect once: a `Client` waits forever for the greeting of a server that is not Dask's.

    Raises:
        OSError: nothing answers there, or it is not a scheduler.
        ValueError: the host is not a valid name, or the other end does not speak TLS.
        RuntimeError: Dask's configuration requires encryption.
    """
    host, port = parse_host_port(address.partition("://")[2])
    socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()  # Dask tries again and again
    arguments = Security().get_connection_args("client")
    try:
        comm = await asyncio.wait_for(connect(address, timeout=CONNECT_SECONDS, **arguments), CONNECT_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"no greeting within {CONNECT_SECONDS} seconds") from None
    await comm.close()


def run_on_dask(
    client: Client,
    function: CaseFunction,
    cases: Sequence[Case],
    *,
    remote: bool,
    record: Callable[[Case, CaseResult], None],
    tick: Callable[[], None],
) -> None:
    """Call a function on every case, with a bounded number of cases in flight.

    A case whose worker died is run again in a separate process, where it cannot harm other cases.

    Args:
        client: of a scheduler.
        function: picklable, of a case.
        cases: with distinct names.
        remote: whether workers import this package from a copy that is sent to them.
        record: called here with each outcome.
        tick: called here about once a second.

    Raises:
        InputError: the scheduler was lost.
    """
    address = client.scheduler.address
    try:
        flight = _Flight(client, function, folder=ship_code(client) if remote else ROOT)
        waiting, losses = deque(cases), Counter()
        while waiting or flight.cases:
            flight.start([waiting.popleft() for _ in range(min(flight.free_slots(), len(waiting)))])
            for case, outcome in flight.collect():
                if outcome is None:
                    losses[case["case"]] += 1
                    outcome = _given_up(losses[case["case"]])
                if outcome is None:
                    flight.start([case], alone=True)
                else:
                    record(case, outcome)
            tick()
    except OSError as error:
        raise InputError(
            f"{address}: the Dask scheduler was lost ({reason(error)}); run again once it is back: finished cases are "
            "kept."
        ) from error


def _given_up(losses: int) -> CaseResult | None:
    """Return a failure for a case whose workers keep dying although it runs in a separate process, else None."""
    return CaseResult(b"", f"its worker was lost {losses} times") if losses >= MAX_LOSSES else None


class _Flight:
    """The cases in flight: sent to workers and not collected yet.

    Attributes:
        cases: cases by future.
        finished: futures that are done.
    """

    def __init__(self, client: Client, function: CaseFunction, *, folder: str) -> None:
        self.client = client
        packed = cloudpickle.dumps(function)
        self.tasks = {alone: worker_task(folder, packed, alone=alone) for alone in (False, True)}
        self.cases: dict[Future, Case] = {}
        self.finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.threads, self.counted, self.reminded = 0, 0.0, time.monotonic()

    def free_slots(self) -> int:
        """Return how many more cases may be sent."""
        now = time.monotonic()
        if now - self.counted >= WAKE_SECONDS:
            self.threads, self.counted = sum(self.client.nthreads().values()), now
        if self.threads:
            self.reminded = now
        elif now - self.reminded >= REMINDER_SECONDS:
            logger.warning("%s has no workers yet; waiting", self.client.scheduler.address)
            self.reminded = now
        return max(0, max(MIN_IN_FLIGHT, IN_FLIGHT_PER_THREAD * self.threads) - len(self.cases))

    def start(self, cases: Sequence[Case], *, alone: bool = False) -> None:
        """Send cases to workers."""
        futures = self.client.map(self.tasks[alone], cases, pure=False, key="case") if cases else []
        for future, case in zip(futures, cases, strict=True):
            self.cases[future] = case
            future.add_done_callback(self.finished.put)

    def collect(self) -> list[FinishedCase]:
        """Wait up to a second for a finished case, and return all finished ones.

        Raises:
            OSError: the scheduler was lost.
        """
        futures = []
        try:
            futures.append(self.finished.get(timeout=WAKE_SECONDS))
            while True:
                futures.append(self.finished.get_nowait())
        except queue.Empty:
            pass
        if self.client.status != "running" or any(future.status == "cancelled" for future in futures):
            raise ConnectionError("the connection broke")
        done = {future.key: future for future in futures if future.status in ("finished", "error")}
        found = self.client.gather(done, errors="skip")
        return [(self.cases.pop(future), _outcome(future, found.get(future.key))) for future in futures]


def _outcome(future: Future, found: tuple[bytes, str, str] | None) -> CaseResult | None:
    """Return the outcome of a case; None if it or its result was lost with a worker."""
    if found is not None:
        return CaseResult(*found)
    error = future.exception() if future.status == "error" else None
    return None if error is None or isinstance(error, KilledWorker) else failed_outcome(error)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start meanwhile use one thread each, whatever the user's environment says."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        os.environ.clear()  # Dask's nannies leave their own variables here
        os.environ.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's log, because failures are reported here case by case."""
    noisy = logging.getLogger("distributed")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        noisy.setLevel(level)
