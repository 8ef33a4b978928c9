"""Running statistics of batch normalization in a training of several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events


class AverageRunningStatistics:
    """Average the running means and variances over all processes at the end of each epoch.

    Each process keeps those of its own batches. Without this, they would validate different networks, and the weights
    that are saved would know the batches of one process only. Of one process, nothing changes. List it before
    validation and checkpoints.

    Args:
        network: with batch normalization; its buffers of floating-point numbers are averaged in place.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, _: Engine) -> None:
        """Average them."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        for buffer in self.network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= dist.get_world_size()
