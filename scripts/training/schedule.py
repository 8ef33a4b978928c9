"""The learning-rate schedule."""

from __future__ import annotations

from typing import Any

from monai.optimizers import WarmupCosineSchedule


class RestartedWarmupCosine(WarmupCosineSchedule):
    """Linear warm-up and cosine decay to 0 over `t_total` steps, which start again after them.

    So each round of federated learning, which trains for `t_total` more epochs with the same optimizer, has the whole
    schedule. MONAI's would let the rate rise again along the cosine. A resumed run follows its own settings and not
    those of the run that it continues, so that `max_epochs` can be raised.

    Args:
        args: as `monai.optimizers.WarmupCosineSchedule`.
        kwargs: as `monai.optimizers.WarmupCosineSchedule`.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = RestartedWarmupCosine(optimizer, warmup_steps=1, t_total=3)
    >>> [round(schedule.lr_lambda(step), 2) for step in range(5)]
    [0.0, 1.0, 0.5, 0.0, 1.0]
    """

    def lr_lambda(self, step: int) -> float:
        """Return the factor of the learning rate at a step from 0."""
        return super().lr_lambda(step % self.t_total)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step; warm-up and length stay those of this run."""
        super().load_state_dict({**state_dict, "warmup_steps": self.warmup_steps, "t_total": self.t_total})
