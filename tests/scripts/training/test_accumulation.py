import os
import subprocess
import sys

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer

from scripts.training.accumulation import WholeGroups
from tests.conftest import ROOT
from tests.scripts.training.small_training import CASES

DATA = [{key: torch.cat([case[key][None]]) for key in case} for case in CASES]  # 7 batches of one


def batches(size):
    parts = [DATA[start : start + size] for start in range(0, len(DATA), size)]
    return [{key: torch.cat([one[key] for one in part]) for key in ("image", "label")} for part in parts]


def trained(batches, accumulate, *, scaler=None, network=None):
    torch.manual_seed(0)
    network = network or torch.nn.Linear(4, 1)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=3,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        loss_function=torch.nn.MSELoss(),
        train_handlers=[WholeGroups()],
        accumulation_steps=accumulate,
        optim_set_to_none=True,
    )
    if scaler:
        trainer.amp = True
        trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine, "scaler", scaler))
    trainer.run()
    return network.weight


@pytest.mark.parametrize("accumulate", [1, 2, 3, 7, 10])
def test_steps_equal_one_of_a_larger_batch_with_an_incomplete_last_one(accumulate):
    expected = trained(batches(accumulate), 1)
    torch.testing.assert_close(trained(batches(1), accumulate), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*(GradScaler|autocast|CUDA is not available)")
def test_gradients_that_a_scaler_scaled_are_averaged_too():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.testing.assert_close(trained(batches(1), 3, scaler=scaler), trained(batches(3), 1), rtol=1e-5, atol=1e-6)


TWO_RANKS = """
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from tests.scripts.training.test_accumulation import batches, trained
torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
network.weight = network.module.weight
exchanges = []
network.register_comm_hook(None, lambda _, bucket: exchanges.append(1) or allreduce_hook(None, bucket))
mine = [batch for n, batch in enumerate(batches(1)[:6]) if n % 2 == torch.distributed.get_rank()]
weight = trained(mine, 2, network=network)  # groups of 2 and 1 steps
order = [0, 1, 2, 3], [4, 5]
whole = [{key: torch.cat([batches(1)[n][key] for n in part]) for key in ("image", "label")} for part in order]
torch.testing.assert_close(weight, trained(whole, 1), rtol=1e-5, atol=1e-6)
assert len(exchanges) == 6, exchanges
"""


def test_two_processes_exchange_gradients_once_per_group(tmp_path):
    (tmp_path / "program.py").write_text(TWO_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(tmp_path / "program.py")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
