"""How fast a training runs, and whether it waits for its data."""

from __future__ import annotations

import time

import torch.distributed as dist
from ignite.engine import Engine, Events


class Throughput:
    """Count samples (crops) per second of all processes, and the share of the time that this one waits for data.

    They become metrics of the trainer, which the progress bar shows and, of each epoch, TensorBoard; validation and
    handlers at the end of an epoch do not count. List it before those that show metrics.
    """

    rate, wait = "samples_per_second", "data_wait_share"

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._get)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)

    def _start(self, _: Engine) -> None:
        self.started = self.asked = time.perf_counter()
        self.waited, self.samples = 0.0, 0

    def _ask(self, _: Engine) -> None:
        self.asked = time.perf_counter()

    def _get(self, _: Engine) -> None:
        self.waited += time.perf_counter() - self.asked

    def _count(self, engine: Engine) -> None:
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.samples += len(engine.state.output) * ranks
        seconds = max(time.perf_counter() - self.started, 1e-9)
        engine.state.metrics[self.rate] = self.samples / seconds
        engine.state.metrics[self.wait] = min(1.0, self.waited / seconds)
