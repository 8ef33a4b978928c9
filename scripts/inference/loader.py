"""Loading cases in other processes, which the system may kill."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from typing import Any

from torch.utils.data import DataLoader

from scripts.common.errors import InputError, reason

logger = logging.getLogger(__name__)

# What torch raises when a process is gone, also while that hands over a case, and when shared memory is full.
_LOST = (RuntimeError, OSError, EOFError, InputError)
_UNSENT = 75
_CAUSES = {"SIGKILL": "out of memory?", "SIGBUS": "is /dev/shm full?"}


class CaseLoader:
    """Iterate over a `DataLoader` of single cases, and continue when a process that loads them is killed.

    Each case that was being loaded is tried once more, alone in a new process. If that is killed too, the reason is
    given in place of the case, as `scripts.inference.evaluator.CaseDataset` does. The order is that of the loader.
    Without processes (`num_workers` 0) this is the loader itself.

    Args:
        loader: loads items with a "case" one at a time.

    Raises:
        InputError: `loader` has another batch size.
    """

    def __init__(self, loader: DataLoader) -> None:
        if loader.batch_size != 1:
            raise InputError(f"batch_size is {loader.batch_size}: cases are loaded one at a time, set it to 1.")
        self.loader = loader
        self.dataset = loader.dataset
        self._was_interrupted = False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        num_workers = self.loader.num_workers
        if not num_workers:
            yield from self.loader
            return
        end_worker_on_queue_error()
        left = list(self.loader.sampler)
        while left:
            again = 0
            try:
                for batch in self._batches(left, num_workers):
                    left.pop(0)
                    yield batch
            except _LOST as error:
                logger.warning("%s: loading again what was being loaded", _worker_error(error)[0].partition(";")[0])
                again = num_workers * self.loader.prefetch_factor
                self._was_interrupted = True
            for _ in left[:again]:
                yield self._alone(left.pop(0))

    def _alone(self, index: int) -> Any:
        """Load one case, or give the reason in its place."""
        try:
            [batch] = self._batches([index], 1)
            return batch
        except _LOST as error:
            why, trace = _worker_error(error)
            return self.loader.collate_fn(
                [{"case": self.dataset.data[index]["case"], "error": why, "traceback": trace}]
            )

    def _batches(self, indices: list[int], num_workers: int) -> Iterator[Any]:
        """Load cases in new processes.

        Raises:
            InputError: one was killed, or a case took longer than the loader's `timeout`.
        """
        if self._was_interrupted:
            gc.collect()  # or the processes that are started now inherit what is left of a lost loader
        own = self.loader
        names = ("collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator")
        options = {name: getattr(own, name) for name in (*names, "prefetch_factor")}
        before = multiprocessing.active_children()
        batches = iter(DataLoader(own.dataset, sampler=list(indices), num_workers=num_workers, **options))
        processes = [process for process in multiprocessing.active_children() if process not in before]
        _unset_sigchld_handler()
        try:
            yield from batches
        except _LOST as error:
            wait([process.sentinel for process in processes], timeout=1.0)
            codes = [process.exitcode for process in processes if process.exitcode is not None]
            if codes:
                raise InputError(_describe(codes[0])) from error
            if "timed out" in str(error):
                raise InputError(f"was not loaded within {own.timeout:g} s, the timeout of the dataloader.") from error
            raise


def _worker_error(error: Exception) -> tuple[str, str]:
    """Return the reason of an error of loading, and its traceback if it was raised in the other process."""
    text = str(error).strip()
    if isinstance(error, InputError) or "DataLoader worker process" not in text:
        return reason(error), ""
    return reason(RuntimeError(text.splitlines()[-1])).removeprefix("RuntimeError: "), text


def _describe(exit_code: int) -> str:
    """Describe how a process ended that should not have."""
    if exit_code == _UNSENT:
        return "the process that loads it cannot send it; see the error above, such as a full disk of temporary files."
    if exit_code >= 0:
        return f"the process that loads it ended with exit code {exit_code}."
    name = signal.Signals(-exit_code).name
    how = "was killed" if name in ("SIGKILL", "SIGTERM") else "crashed"
    cause = f"{name}, {_CAUSES[name]}" if name in _CAUSES else name
    return f"the process that loads it {how} ({cause}); free memory or leave the case out, then run again."


def _unset_sigchld_handler() -> None:
    """Take back the signal handler of torch's `DataLoader`.

    It raises wherever the main process happens to be, so that the case that is being segmented would fail instead of
    the one that was being loaded. Without it the loader notices within 5 s that a process is gone.
    """
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    if number and getattr(signal.getsignal(number), "__module__", "").startswith("torch.utils.data"):
        with suppress(ValueError):  # not the main thread, where torch sets none
            signal.signal(number, signal.SIG_DFL)


def end_worker_on_queue_error() -> None:
    """Let the processes of a `DataLoader` that are started from now on end if they cannot send what they loaded.

    By default they print the error of their queue, such as a full temporary folder, and the main process waits forever.
    """
    Queue._on_queue_feeder_error = staticmethod(_print_and_end)


def _print_and_end(_: Exception, __: object) -> None:
    traceback.print_exc()
    if multiprocessing.parent_process() is not None:
        os._exit(_UNSENT)
