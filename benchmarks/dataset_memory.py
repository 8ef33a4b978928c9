"""Memory and time of `dataset: cache|store|plain`: `python -m benchmarks.dataset_memory`.

Prepares phantoms by the deterministic transforms of swin_bob_btcv, each kind in a fresh process, and measures memory
per further case, peak, file size and the time of later epochs. Writes `results/dataset_memory.csv`, and what whole
data sets would need by the measured bytes per byte of tensor to `results/dataset_memory_extrapolated.csv`, which is
computed, not measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.transforms import Compose

from benchmarks.restore import memory_mb
from scripts.common.files import write_table
from scripts.data.datalist import load_datalist
from scripts.data.datasets import KINDS, make_dataset
from scripts.data.store import case_bytes
from tools.phantom import write_cohort

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
CASES, FEW = 8, 2
SHAPE, SPACING_MM = (230, 170, 120), (1.5, 1.5, 2.0)
BRATS_SHAPE, BRATS_CASES = (240, 240, 155), 1251
BRATS = {
    "BraTS 2023, 4 images": 4,
    "BraTS 2023, 4 images and a label map": 5,
    "BraTS 2023, 4 images and 3 regions": 7,
}
logger = logging.getLogger(__name__)


def preparation() -> Compose:
    """Return the deterministic transforms of swin_bob_btcv at its own spacing."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles" / "swin_bob_btcv" / "configs" / "train.json"))
    return Compose(parser.get_parsed_content("train#deterministic_transforms"))


def seconds_per_case(dataset: Dataset) -> float:
    """Take each case once, as an epoch does."""
    start = time.perf_counter()
    for index in range(len(dataset)):
        dataset[index]
    return (time.perf_counter() - start) / len(dataset)


def tensors_mb(item: Mapping[str, object]) -> float:
    """Return the size of a case's image and label alone."""
    return sum(value.nbytes for value in item.values() if isinstance(value, torch.Tensor)) / 2**20


def measure(folder: Path, kind: str) -> dict[str, float]:
    """Measure one kind in this process; the first cases allocate what stays."""
    cases = load_datalist(folder, check=False)["training"]
    options = {"kind": kind, "cache_dir": folder / "cache"}
    few = make_dataset(cases[:FEW], preparation(), **options)
    seconds_per_case(few)
    gc.collect()
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the first cases
    rest = make_dataset(cases[FEW:], preparation(), **options)
    seconds_per_case(rest)
    later = seconds_per_case(rest)
    gc.collect()
    now, peak = memory_mb("VmRSS"), memory_mb("VmHWM")
    files = [rest.file_of(case) for case in cases[FEW:]] if kind == "store" else []
    return {
        "tensors_mb_per_case": sum(tensors_mb(rest[index]) for index in range(len(rest))) / len(rest),
        "memory_mb_per_case": (now - before) / len(rest),
        "peak_mb_above_start": peak - before,
        "file_mb_per_case": sum(case_bytes(file) for file in files) / 2**20 / len(rest),
        "later_epoch_s": later,
    }


def measured(folder: Path) -> pd.DataFrame:
    """Measure each kind in a process of its own; the time is a ratio to `plain`."""
    write_cohort(folder, cases=CASES + 2, shape=SHAPE, spacing_mm=SPACING_MM)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory is returned to the system at once
    rows = []
    for kind in KINDS:
        command = [sys.executable, "-m", "benchmarks.dataset_memory", "--one", str(folder), kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        rows.append({"dataset": kind, **json.loads(done.stdout.splitlines()[-1])})
    table = pd.DataFrame(rows)
    plain = table.loc[table["dataset"] == "plain", "later_epoch_s"].item()
    table["later_epoch_time_ratio"] = table.pop("later_epoch_s") / plain
    return table


def extrapolated(table: pd.DataFrame, data_sets: Mapping[str, int], shape: Sequence[int], cases: int) -> pd.DataFrame:
    """Scale the measured bytes per byte of tensor to data sets of float32 volumes that keep their shape."""
    by_kind = table.set_index("dataset")
    memory_ratio = by_kind.loc["cache", "memory_mb_per_case"] / by_kind.loc["cache", "tensors_mb_per_case"]
    rows = []
    for name, channels in data_sets.items():
        tensor_bytes = 4 * channels * shape[0] * shape[1] * shape[2]
        rows.append(
            {
                "data": name,
                "cases": cases,
                "tensors_mb_per_case": tensor_bytes / 2**20,
                "cache_memory_gb": cases * tensor_bytes * memory_ratio / 1e9,
            }
        )
    return pd.DataFrame(rows)


def main() -> int:
    """Measure, extrapolate and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(measure(Path(args.one[0]), args.one[1])))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        table = measured(Path(folder))
    whole = extrapolated(table, BRATS, BRATS_SHAPE, BRATS_CASES)
    for name, rows in (("dataset_memory", table), ("dataset_memory_extrapolated", whole)):
        logger.info("%s\n%s", name, rows.round(2).to_string(index=False))
        write_table(rows, RESULTS / f"{name}.csv", decimals=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
