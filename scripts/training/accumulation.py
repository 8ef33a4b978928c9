"""Accumulation of gradients that equals a larger batch, the last one of an epoch included."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch.nn.parallel import DistributedDataParallel


class WholeGroups:
    """Complete MONAI's `accumulation_steps`; nothing changes if they are 1.

    MONAI 1.6.1 divides each loss by the number of steps. In the last group of an epoch, which may have fewer, the
    gradients are then too small: here they are scaled to their mean, that of a batch of the remaining cases. Processes
    of a distributed run exchange gradients only in the last step of a group.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a `SupervisedTrainer`."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._choose_exchange)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._average)

    def _choose_exchange(self, engine: Engine) -> None:
        if isinstance(engine.network, DistributedDataParallel):
            engine.network.require_backward_grad_sync = _steps_of_ended_group(engine) > 0  # as its `no_sync`

    def _average(self, engine: Engine) -> None:
        steps = _steps_of_ended_group(engine)
        if 0 < steps < engine.accumulation_steps:
            for group in engine.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.mul_(engine.accumulation_steps / steps)


def _steps_of_ended_group(engine: Engine) -> int:
    """Return the number of steps of the group that this step ends, 0 if it does not end one."""
    done = (engine.state.iteration - 1) % engine.state.epoch_length + 1
    rest = done % engine.accumulation_steps
    return rest or engine.accumulation_steps if not rest or done == engine.state.epoch_length else 0
