"""Measure the network of ultrabones: `python -m benchmarks.ultrabones_network`.

Time of a forward pass beside MONAI's `FlexibleUNet` of the same encoder, as ratios of alternating runs on one core.
Writes `results/ultrabones_network.csv`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.networks.nets import FlexibleUNet

from benchmarks.universeg_network import cpu_seconds
from scripts.common.files import write_table
from scripts.models.ultrabones import UltraBones

RESULTS = Path(__file__).parent / "results"
SIZE, BATCH, REPEATS = 256, 4, 7
logger = logging.getLogger("ultrabones_network")


@torch.inference_mode()
def main() -> int:
    """Measure, and write the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    networks = {"FlexibleUNet": FlexibleUNet(1, 1, "resnet34"), "UltraBones": UltraBones()}
    seconds = {name: [] for name in networks}
    frames = torch.rand(BATCH, 1, SIZE, SIZE)
    for repeat in range(REPEATS + 1):
        for name, network in networks.items():
            taken = cpu_seconds(lambda: network.eval()(frames))  # noqa: B023 (called at once)
            seconds[name] += [taken] if repeat else []  # the first run warms up
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    rows = [
        {
            "network": name,
            "parameters": sum(p.numel() for p in network.parameters()),
            "time_ratio": medians[name] / medians["FlexibleUNet"],
        }
        for name, network in networks.items()
    ]
    table = pd.DataFrame(rows)
    write_table(table, RESULTS / "ultrabones_network.csv", decimals=3)
    logger.info("\n%s", table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
