"""Measure UniverSeg's network: `python -m benchmarks.universeg_network`.

Time of the formulas one by one, of the network, and of the network with a support set that was prepared before, as
ratios of alternating runs on one core; and peak memory by the number of support images. Writes
`results/universeg_network.csv`.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from scripts.common.files import write_table
from scripts.models.universeg import UniverSeg
from tests.scripts.models.test_universeg import literal

RESULTS = Path(__file__).parent / "results"
SUPPORT, SIZE, REPEATS = 16, 128, 3
MEMORY_SUPPORT, MEMORY_FEATURES, MEMORY_SIZE, CHUNK = (16, 32, 64, 128, 256), [16, 16, 16, 16], 64, 32
logger = logging.getLogger("universeg_network")


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.inference_mode()
def speed() -> dict[str, float]:
    """Return the median time of each way, as a ratio to that of the formulas."""
    torch.manual_seed(0)
    network = UniverSeg().eval()
    image, images = torch.rand(1, 1, SIZE, SIZE), torch.rand(1, SUPPORT, 1, SIZE, SIZE)
    labels = (images > 0.5).float()
    prepared = network.prepare(images, labels)
    ways = {
        "formulas one by one": lambda: literal(network, image, images, labels),
        "network": lambda: network(image, images, labels),
        "network, support prepared": lambda: network.segment(image, prepared),
    }
    seconds = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            seconds[name].append(cpu_seconds(way))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    logger.info("seconds of processor time: %s", {name: round(value, 2) for name, value in medians.items()})
    return {name: value / medians["formulas one by one"] for name, value in medians.items()}


def peak_megabytes(n: int) -> float:
    """Return the peak memory of a process that predicts one image by n others, beyond that of 1 image."""
    torch.set_num_threads(1)
    network = UniverSeg(features=MEMORY_FEATURES, chunk=CHUNK).eval()
    peaks = []
    for count in (1, n):
        with torch.inference_mode():
            images = torch.rand(1, count, 1, MEMORY_SIZE, MEMORY_SIZE)
            network(torch.rand(1, 1, MEMORY_SIZE, MEMORY_SIZE), images, (images > 0.5).float())
        status = Path("/proc/self/status").read_text()
        peaks.append(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3)  # not ru_maxrss, which a parent leaves too
    return peaks[1] - peaks[0]


def main() -> int:
    """Measure, and write the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    rows = [{"what": f"time of {name}, {SUPPORT} images", "ratio": ratio} for name, ratio in speed().items()]
    context = multiprocessing.get_context("spawn")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # or freed memory stays with the process, which counts as its own
    for n in MEMORY_SUPPORT:
        with context.Pool(1) as pool:
            rows.append({"what": f"memory of {n} images, chunk {CHUNK}", "megabytes": pool.apply(peak_megabytes, (n,))})
    table = pd.DataFrame(rows)
    write_table(table, RESULTS / "universeg_network.csv", decimals=3)
    logger.info("\n%s", table.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
