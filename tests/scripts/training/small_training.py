"""A training of seconds with random transforms and dropout, which signals may stop; also a program for torchrun.

`small_training.py FOLDER RESUME SIGNAL_AT RANK`: the process of that rank gets SIGUSR1 at the start of that step; if
RANK is "torchrun", that gets SIGTERM.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanAbsoluteError, ValidationHandler, from_engine
from monai.networks.nets import FullyConnectedNet
from monai.transforms import Compose, RandGaussianNoised

from scripts.training import stopping
from scripts.training.checkpoints import BestCheckpoint, LastCheckpoint, Resume, TrainingState
from scripts.training.sampling import SeededCases, SeededSampler, StepSeed
from scripts.training.stopping import StopOnSignal

RNG = torch.Generator().manual_seed(0)
CASES = [{"image": torch.randn(4, generator=RNG), "label": torch.ones(1)} for _ in range(7)]
PATH = "training_state.ckpt"


def evaluator_of(network, folder, on_case=None):
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(CASES[:3]), num_workers=0),
        network=network,
        key_val_metric={"score": MeanAbsoluteError(output_transform=from_engine(["pred", "label"]))},
        val_handlers=[BestCheckpoint(network, folder / "model.pt")],
    )
    if on_case:
        evaluator.add_event_handler(Events.ITERATION_STARTED, on_case)
    return evaluator


def train(folder, *, resume=False, on_step=None, on_case=None, max_epochs=3, workers=0, accumulate=1, listen=True):
    """Train, and return the content of the last checkpoint; `on_step` and `on_case` are called as steps start."""
    torch.manual_seed(0)
    network = FullyConnectedNet(4, 1, [8], dropout=0.5)
    if torch.distributed.is_initialized():
        network = torch.nn.parallel.DistributedDataParallel(network)
    dataset = Dataset(CASES, Compose([RandGaussianNoised("image", prob=0.7)]))
    sampler = SeededSampler(dataset, seed=3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
    evaluator = evaluator_of(network, folder, on_case)
    state = TrainingState(network, optimizer, schedule, evaluator)
    handlers = [
        *([Resume(state, folder / PATH)] if resume else []),
        StepSeed(3),
        LrScheduleHandler(schedule, print_lr=False),
        ValidationHandler(interval=1, validator=evaluator),
        *([LastCheckpoint(state, folder / PATH)] if os.environ.get("RANK", "0") == "0" else []),
        StopOnSignal(state, folder / PATH),
    ]
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=max_epochs,
        train_data_loader=DataLoader(SeededCases(dataset), batch_size=2, sampler=sampler, num_workers=workers),
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        train_handlers=handlers,
        accumulation_steps=accumulate,
    )
    if on_step:
        trainer.add_event_handler(Events.ITERATION_STARTED, on_step)
    trainer.run()
    return torch.load(folder / PATH, weights_only=True)


def signal_at(step, number=signal.SIGUSR1):
    """Return a handler that sends this process a signal at an iteration."""
    return lambda engine: os.kill(os.getpid(), number) if engine.state.iteration == step else None


def end_torchrun_at(step):
    """Return a handler that sends torchrun SIGTERM at an iteration, and goes on when this process got it, too."""

    def on_step(engine):
        if engine.state.iteration == step:
            os.kill(os.getppid(), signal.SIGTERM)
            while not signal.getsignal(signal.SIGTERM).__self__.received:
                time.sleep(0.02)

    return on_step


def main(folder, resume, step, rank):
    stopping.is_bundle_run = lambda: True
    torch.distributed.init_process_group("gloo")
    on_step = signal_at(int(step)) if rank == os.environ["RANK"] else None
    if rank == "torchrun" and os.environ["RANK"] == "0":
        on_step = end_torchrun_at(int(step))
    train(Path(folder), resume=json.loads(resume), on_step=on_step)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
