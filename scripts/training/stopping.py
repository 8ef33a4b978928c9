"""Stop a training when the system asks for it, as schedulers of clusters do before they end a job."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from scripts.common.errors import is_bundle_run
from scripts.common.ranks import is_rank0
from scripts.inference.run_guard import surround_run
from scripts.models.weight_files import save
from scripts.training.checkpoints import TrainingState

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopOnSignal:
    """On SIGTERM or SIGUSR1, save the state of the training at the end of the running step, and end without an error.

    A validation ends after its running case; the resumed run repeats it. Further signals change nothing, as a scheduler
    may send several; Ctrl-C ends the program at once. All processes of a distributed run stop at the same step,
    whichever of them got the signal: after each step, and once in each validation, they exchange whether one did, by
    gloo, so that no GPU has to wait. A step whose gradients are still accumulated is repeated by the resumed run: the
    weights are those before it.

    List it after `LastCheckpoint`. It only acts in `python -m monai.bundle`, as other programs have signals of their
    own.

    Args:
        state: what to save.
        path: the file that `LastCheckpoint` writes.
    """

    def __init__(self, state: TrainingState, path: str | Path) -> None:
        self.state, self.path = state, Path(path)
        self.received = self.stopping = False
        self.group = None
        self.is_listening = multiprocessing.RawValue("b", 0)  # the workers see it, too

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, and to the evaluator of the state."""
        evaluator = self.state.evaluator
        surround_run(engine, self._listening)
        for loader in (engine.data_loader, evaluator.data_loader):
            loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn, self.is_listening)
        evaluator.add_event_handler(Events.STARTED, self._skip_validation)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._end_case)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_step)
        for event in (Events.STARTED, Events.EPOCH_COMPLETED):
            engine.add_event_handler(event, self._end_epoch)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self.received = self.stopping = False
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")
        is_heard = is_bundle_run() and threading.current_thread() is threading.main_thread()
        earlier = {number: signal.signal(number, self._receive) for number in SIGNALS if is_heard}
        self.is_listening.value = is_heard
        try:
            yield
        finally:
            self.is_listening.value = False
            for number, handler in earlier.items():
                signal.signal(number, handler)
            if self.group is not None:  # its threads would abort a program that ends while they still need Python
                dist.destroy_process_group(self.group)
                self.group = None

    def _receive(self, number: int, _: Any) -> None:
        if not self.received:
            logger.info("got %s: the training stops after this step", signal.Signals(number).name)
        self.received = True

    def _agree(self) -> bool:
        """Return whether any process got a signal; all processes have to call it."""
        received = torch.tensor(int(self.received))
        if self.group is not None:
            dist.all_reduce(received, op=dist.ReduceOp.MAX, group=self.group)
        self.stopping = bool(received)
        return self.stopping

    def _end_step(self, engine: Engine) -> None:
        done = (engine.state.iteration - 1) % engine.state.epoch_length + 1
        if not self._agree() or done == engine.state.epoch_length:  # then the epoch's other handlers come first
            return
        if is_rank0():
            save(self.state.state_dict(engine, done=done - done % engine.accumulation_steps), self.path)
            logger.info("stopped after step %d of epoch %d; set resume to true to go on", done, engine.state.epoch)
        engine.terminate(skip_completed=True)

    def _end_epoch(self, engine: Engine) -> None:
        if self.stopping:
            logger.info("stopped after epoch %d; set resume to true to go on", engine.state.epoch)
            engine.terminate(skip_completed=True)

    def _skip_validation(self, engine: Engine) -> None:
        self.state.validation_due = self.stopping
        if self.stopping:
            engine.terminate(skip_completed=True)

    def _end_case(self, engine: Engine) -> None:
        is_last = engine.state.iteration % engine.state.epoch_length == 0
        if (self.received or is_last) and self._agree():
            self.state.validation_due = True
            engine.terminate(skip_completed=True)


def _start_worker(init: Callable[[int], None] | None, is_listening: Any, number: int) -> None:
    """Let a worker ignore the signals that a scheduler sends to all processes while the main one listens.

    At other times they end it: Python ends its workers by SIGTERM when it exits, and waits for them.
    """

    def receive(number: int, _: Any) -> None:
        if not is_listening.value:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for each in SIGNALS:
        signal.signal(each, receive)
    if init:
        init(number)
