"""Distributed training: the rank of this process, and the network without its wrapper."""

from __future__ import annotations

import torch
import torch.distributed as dist


def is_rank0() -> bool:
    """Return whether this process writes the shared files."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """Return the module inside DistributedDataParallel, or `network` itself."""
    return network.module if isinstance(network, torch.nn.parallel.DistributedDataParallel) else network
