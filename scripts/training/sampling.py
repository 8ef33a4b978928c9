"""Order and random numbers of a training run, such that it can go on exactly from any of its steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.transforms import Randomizable
from torch.utils.data import Dataset, DistributedSampler


class SeededSampler(DistributedSampler):
    """Shuffle the cases by seed and epoch, and give each place in the epoch a seed of its own.

    So the random transforms of a case depend neither on those before it nor on the process that loads it, and an epoch
    can start at any place. MONAI's trainer sets the epoch.

    Args:
        dataset: the training cases.
        seed: seed of the run.
    """

    def __init__(self, dataset: Dataset, *, seed: int) -> None:
        ranks = (dist.get_world_size(), dist.get_rank()) if dist.is_available() and dist.is_initialized() else (1, 0)
        super().__init__(dataset, *ranks, seed=seed)
        self.skipped = 0

    def skip(self, cases: int) -> None:
        """Leave out the first cases of this process, in the next epoch alone."""
        self.skipped = cases

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Return pairs of index and seed."""
        places = range(self.rank, self.total_size, self.num_replicas)
        first, self.skipped = self.skipped, 0
        pairs = list(zip(super().__iter__(), places, strict=True))[first:]
        return ((index, _seed(self.seed, self.epoch, place)) for index, place in pairs)


class SeededCases(Dataset):
    """A dataset that takes pairs of index and seed; the seed determines all random numbers of its transforms.

    Args:
        dataset: whose attribute `transform` holds the random transforms, or which draws random numbers itself.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._draws = dataset if isinstance(dataset, Randomizable) else getattr(dataset, "transform", dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """Seed Python, NumPy, torch and the transforms, and return the case."""
        index, seed = key
        _seed_all(seed)
        set_rnd(self._draws, seed=seed)
        return self.dataset[index]


class StepSeed:
    """Seed the random numbers of each training step, such as those of dropout, by (seed, iteration, rank).

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed Python, NumPy and torch."""
        _seed_all(_seed(self.seed, engine.state.iteration, engine.state.rank))


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
