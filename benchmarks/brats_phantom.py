"""Check that swin_bob_brats learns: `python -m benchmarks.brats_phantom [--raw FOLDER]`.

Trains the bundle at reduced size on brain phantoms with its own commands, scores a held-out phantom, and writes
`results/brats_phantom.csv`. With four raw scans of a patient it segments those too. That shows only that the run
completes: a network trained on ten phantoms cannot segment patients.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd

from scripts.common.files import write_table
from tools import demo
from tools.brain_phantom import write_cohort

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "swin_bob_brats"
RESULTS = Path(__file__).parent / "results"
TARGET = 0.75
REDUCED_NETWORK = {**demo.REDUCED_NETWORK, "patch_size": [64, 64, 32], "spacing_mm": [3.0, 3.0, 3.0]}
REDUCED_TRAINING = {
    "network_def#use_checkpoint": False,
    "dataset": "cache",
    "check_data": False,
    "max_epochs": 40,
    "warmup_epochs": 2,
    "val_interval": 20,
    "learning_rate": 0.01,
    "intensity_prob": 0,
}
run = partial(demo.run, BUNDLE)
logger = logging.getLogger("brats_phantom")


def main() -> int:
    """Train, score and segment the scans, if there are any; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, default=ROOT.parent / "shared/data/brain_mri", help="folder of raw scans")
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "brats", help="folder (default: demo/brats)")
    parser.add_argument("--cases", type=int, default=11, help="phantoms, the last of them held out (default: 11)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start, out = time.monotonic(), args.out.resolve()
    write_cohort(out / "data", cases=args.cases, seed=0)
    reduced = {**REDUCED_NETWORK, "dataset_dir": str(out / "data")}
    training = {**reduced, **REDUCED_TRAINING, "ckpt_dir": str(out / "models")}
    run({**training, "output_dir": str(out / "runs")}, "train.json")
    minutes = (time.monotonic() - start) / 60
    run({**training, "output_dir": str(out), "eval_split": "test"}, "train.json", "evaluate.json")
    segment = {**reduced, "ckpt_path": str(out / "models" / "model.pt")}
    run({**segment, "output_dir": str(out)}, "inference.json")
    if args.raw.is_dir():
        run({**segment, "output_dir": str(out / "raw"), "input": str(args.raw), "resample": True}, "inference.json")
    summary = pd.read_csv(out / "summary.csv").set_index("region")
    table = summary[["mean_dice", "mean_hd95_mm", "mean_lesion_dice", "mean_lesion_hd95_mm"]]
    write_table(table.reset_index(), RESULTS / "brats_phantom.csv", decimals=3)
    found = float(table.loc["mean", "mean_dice"])
    logger.info(
        "\n%s\n\nmean region Dice %.3f, target %.2f; trained in %.1f min", table.round(3), found, TARGET, minutes
    )
    return int(found < TARGET)


if __name__ == "__main__":
    sys.exit(main())
