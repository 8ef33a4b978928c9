import pytest
import torch
from monai.optimizers import WarmupCosineSchedule

from scripts.training.schedule import RestartedWarmupCosine


def rates(schedule, epochs):
    """Return the rate of each epoch."""
    found = []
    for _ in range(epochs):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)


def test_first_run_is_monais_schedule():
    ours, theirs = (
        kind(optimizer(), warmup_steps=3, t_total=10, warmup_multiplier=0.02)
        for kind in (RestartedWarmupCosine, WarmupCosineSchedule)
    )
    assert rates(ours, 10) == rates(theirs, 10)


@pytest.mark.parametrize("local_epochs", [1, 4])
def test_each_round_of_federated_learning_has_the_same_rates(local_epochs):
    found = rates(RestartedWarmupCosine(optimizer(), warmup_steps=0, t_total=local_epochs), 3 * local_epochs)
    assert found[:local_epochs] == found[local_epochs : 2 * local_epochs] == found[2 * local_epochs :]
    assert found[0] == 0.5


def test_resumed_run_with_more_epochs_follows_its_own_schedule():
    first = RestartedWarmupCosine(optimizer(), warmup_steps=1, t_total=4)
    rates(first, 4)
    longer = RestartedWarmupCosine(optimizer(), warmup_steps=1, t_total=8)
    longer.load_state_dict(first.state_dict())
    whole = rates(RestartedWarmupCosine(optimizer(), warmup_steps=1, t_total=8), 8)
    longer.step()
    assert rates(longer, 3) == pytest.approx(whole[5:])
