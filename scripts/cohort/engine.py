"""Run cases on Dask: on worker processes of this machine or on an existing cluster."""

from __future__ import annotations

import logging
import os
import queue
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import cloudpickle
import dask
from distributed import Client, Future, KilledWorker, LocalCluster
from distributed.comm.addressing import parse_address, parse_host_port

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
        address: such as `tcp://host:8786`.

    Raises:
        InputError: no scheduler answers there.
    """
    with _quiet():
        try:
            socket.create_connection(parse_host_port(parse_address(address)[1]), timeout=CONNECT_SECONDS).close()
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"scheduler {address}: no Dask scheduler answers there ({reason(error)}); start `dask scheduler`, "
                "and give the address that it prints."
            ) from error
        try:
            yield client
        finally:
            client.close(timeout=WAKE_SECONDS)


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
