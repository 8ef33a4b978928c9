"""Convert the published checkpoint of UltraBones100k to the plain state dict that the bundle loads.

    python -m scripts.convert_ultrabones epoch_101.pth models/model.pt

The published file is a whole pickled module. It is read without importing or calling anything of it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.models.conversion import check_target, exit_code, write_weights
from scripts.models.module_pickle import load_module_file
from scripts.models.ultrabones import UltraBones
from scripts.models.weights import check_state_dict

logger = logging.getLogger(__name__)


def convert(source: str | Path, target: str | Path) -> int:
    """Convert a checkpoint, after checking that it fits the network exactly.

    Args:
        source: published checkpoint, or one of Lightning or a state dict.
        target: file to write; an existing one is replaced.

    Returns:
        The number of tensors written.

    Raises:
        InputError: there is no such source, it cannot be read or is not of `UltraBones`, or the target is the source or
            cannot be written.
    """
    source, target = Path(source), Path(target)
    check_target(source, target)
    state = load_module_file(source)
    with torch.device("meta"):
        network = UltraBones()
    check_state_dict(network, state, source)
    write_weights(
        {name: state[name].clone(memory_format=torch.contiguous_format) for name in network.state_dict()}, target
    )
    return len(state)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 where nothing was written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m scripts.convert_ultrabones", description=__doc__)
    parser.add_argument("source", type=Path, help="published checkpoint, e.g. epoch_101.pth")
    parser.add_argument("target", type=Path, help="file to write, e.g. models/model.pt")
    options = parser.parse_args(argv)
    return exit_code(
        lambda: logger.info("wrote %d tensors: %s", convert(options.source, options.target), options.target)
    )
