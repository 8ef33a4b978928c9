"""Dask as the engine of a cohort: a cluster of this machine or one that is there, and many cases on their way."""

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

from scripts.cohort.attempts import CaseFunction, Outcome
from scripts.cohort.journal import Case
from scripts.cohort.shipping import ROOT, ship_code, worker_task
from scripts.errors import reason

CONNECT_SECONDS = 10
WAKE_SECONDS = 1.0
REMINDER_SECONDS = 60
LEAST_ON_THE_WAY, PER_THREAD = 16, 4
MAX_LOSSES = 3
_SETTINGS = {
    "distributed.worker.profile.enabled": False,
    # Dask's nannies make workers return freed memory at once, so that every volume is paged in anew
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**28,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**25,
}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
logger = logging.getLogger(__name__)

Landed = tuple[Case, Outcome | None]
"""A case and what became of it; None where its worker was lost."""


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """Start processes of one thread each on this machine; they listen on the loopback interface alone.

    They end with this process, however that ends: each watches a pipe that the kernel closes then.

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
        ValueError: no scheduler answers there.
    """
    with _quiet():
        try:
            socket.create_connection(parse_host_port(parse_address(address)[1]), timeout=CONNECT_SECONDS).close()
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--scheduler {address}: no Dask scheduler answers there ({reason(error)}); start `dask scheduler`, "
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
    record: Callable[[Case, Outcome], None],
    tick: Callable[[], None],
) -> None:
    """Call a function on every case, with a bounded number of cases on their way.

    A case whose worker died goes again in a process of its own, where it can kill nothing else.

    Args:
        client: of a scheduler.
        function: picklable, of a case.
        cases: with distinct names.
        remote: the workers import this package from a copy sent to them.
        record: called here with each outcome.
        tick: called here about each second.

    Raises:
        ValueError: the scheduler was lost.
    """
    address = client.scheduler.address
    try:
        flight = _Flight(client, function, folder=ship_code(client) if remote else ROOT)
        waiting, losses = deque(cases), Counter()
        while waiting or flight.cases:
            flight.start([waiting.popleft() for _ in range(min(flight.room(), len(waiting)))])
            for case, outcome in flight.land():
                if outcome is None:
                    losses[case["case"]] += 1
                    outcome = _too_often(losses[case["case"]])
                if outcome is None:
                    flight.start([case], alone=True)
                else:
                    record(case, outcome)
            tick()
    except OSError as error:
        raise ValueError(
            f"{address}: the Dask scheduler was lost ({reason(error)}); run again once it is back: finished cases are "
            "kept."
        ) from error


def _too_often(losses: int) -> Outcome | None:
    """Give a case up whose workers keep dying, although it ran in a process of its own."""
    return Outcome(b"", f"its worker was lost {losses} times") if losses >= MAX_LOSSES else None


class _Flight:
    """The cases that are on their way to workers or back.

    Attributes:
        cases: by future.
    """

    def __init__(self, client: Client, function: CaseFunction, *, folder: str) -> None:
        self.client = client
        packed = cloudpickle.dumps(function)
        self.tasks = {alone: worker_task(folder, packed, alone=alone) for alone in (False, True)}
        self.cases: dict[Future, Case] = {}
        self.landed: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.threads, self.counted, self.reminded = 0, 0.0, time.monotonic()

    def room(self) -> int:
        """Return how many cases more may go."""
        now = time.monotonic()
        if now - self.counted >= WAKE_SECONDS:
            self.threads, self.counted = sum(self.client.nthreads().values()), now
        if self.threads:
            self.reminded = now
        elif now - self.reminded >= REMINDER_SECONDS:
            logger.warning("%s has no workers: waiting for them", self.client.scheduler.address)
            self.reminded = now
        return max(0, max(LEAST_ON_THE_WAY, PER_THREAD * self.threads) - len(self.cases))

    def start(self, cases: Sequence[Case], *, alone: bool = False) -> None:
        """Send cases."""
        futures = self.client.map(self.tasks[alone], cases, pure=False, key="case") if cases else []
        for future, case in zip(futures, cases, strict=True):
            self.cases[future] = case
            future.add_done_callback(self.landed.put)

    def land(self) -> list[Landed]:
        """Wait up to a second for a case, and return all that are back.

        Raises:
            OSError: the scheduler was lost.
        """
        futures = []
        try:
            futures.append(self.landed.get(timeout=WAKE_SECONDS))
            while True:
                futures.append(self.landed.get_nowait())
        except queue.Empty:
            pass
        if self.client.status != "running" or any(future.status == "cancelled" for future in futures):
            raise ConnectionError("the connection broke")
        done = {future.key: future for future in futures if future.status in ("finished", "error")}
        found = self.client.gather(done, errors="skip")
        return [(self.cases.pop(future), _outcome(future, found.get(future.key))) for future in futures]


def _outcome(future: Future, found: tuple[bytes, str] | None) -> Outcome | None:
    """Return what became of a case; None if it or its finished result was lost with a worker."""
    if found is not None:
        return Outcome(*found)
    error = future.exception() if future.status == "error" else None
    return None if error is None or isinstance(error, KilledWorker) else Outcome(b"", reason(error))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start meanwhile use one thread each, whatever the user's own setting is."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        os.environ.clear()  # Dask's nannies leave variables of their own here
        os.environ.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask from logging what is reported here, case by case."""
    noisy = logging.getLogger("distributed")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        noisy.setLevel(level)
