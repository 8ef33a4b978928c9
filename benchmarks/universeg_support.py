"""Check that more support helps: `python -m benchmarks.universeg_support [--weights MODEL.pt]`.

Trains the universeg bundle at reduced size with its own command, on synthetic tasks and on organs of phantoms, then
predicts tasks that it never saw with 1 to 16 support images: other synthetic tasks, and other organs of other phantoms.
Writes `results/universeg_support.csv` and `.png`. The same targets are predicted with each number, by the first images
of one list.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser

from scripts.common.files import write_table
from scripts.common.locks import FolderLock
from scripts.data.datalist import load_datalist
from scripts.models.universeg import UniverSeg
from scripts.models.weights import load_weights
from scripts.universeg.episodes import Episodes, Tasks
from scripts.universeg.study import mask_dice, plot
from tools import demo
from tools.demo_universeg import BUNDLE, FEATURES, HELD_OUT, IMAGE_SIZE, REDUCED, TRAINING
from tools.phantom import write_cohort

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
SUPPORT_SIZES, TARGETS = (1, 2, 4, 8, 16), 100
TRAINING = {**TRAINING, "max_epochs": 15, "warmup_epochs": 1, "val_interval": 4, "val_episodes": 50}
logger = logging.getLogger("universeg_support")


def held_out(out: Path) -> dict[str, Episodes]:
    """Return the tasks to predict: synthetic ones, and organs held out of phantoms that training did not read."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser.update(REDUCED)
    data = load_datalist(out / "test", required=["training"], check=False, allow_overlap=True)
    cases = [case for section in data.values() for case in section]
    tasks = Tasks(cases, transform=parser.get_parsed_content("train#preprocessing"), held_out=HELD_OUT)
    options = {"episodes": TARGETS, "image_size": IMAGE_SIZE, "support_size": SUPPORT_SIZES[-1], "held_out": True}
    shares = {"synthetic tasks": 1.0, "organs of phantoms": 0.0}
    return {name: Episodes(tasks, **options, synthetic_share=share, seed=10_000) for name, share in shares.items()}


@torch.inference_mode()
def scores(network: UniverSeg, episodes: Episodes) -> Iterator[dict[str, Any]]:
    """Yield the Dice of each target with each number of support images."""
    for index in range(len(episodes)):
        one = episodes[index]
        for size in SUPPORT_SIZES:
            support = (one[f"support_{key}"][None, :size] for key in ("images", "labels"))
            pred = network(one["image"][None], *support)[0] > 0
            yield {"support_size": size, "dice": mask_dice(pred, one["label"] > 0)}


def main() -> int:
    """Train, if no weights are given, and score; return 1 if 16 images are no better than 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "demo" / "universeg", help="folder (default: demo/universeg)"
    )
    parser.add_argument("--weights", type=Path, help="trained before; by default they are trained now")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out, start = args.out.resolve(), time.monotonic()
    write_cohort(out / "train", cases=6, seed=0)
    write_cohort(out / "test", cases=4, seed=1)
    if not args.weights:
        folders = {"dataset_dir": str(out / "train"), "ckpt_dir": str(out / "models"), "output_dir": str(out / "runs")}
        demo.run(BUNDLE, {**REDUCED, **TRAINING, **folders}, "train.json")
        logger.info("trained in %.1f min", (time.monotonic() - start) / 60)
    network = UniverSeg(features=FEATURES).eval()
    load_weights(network, args.weights or out / "models" / "model.pt")
    found = {name: pd.DataFrame(scores(network, episodes)) for name, episodes in held_out(out).items()}
    table = pd.concat([rows.assign(tasks=name) for name, rows in found.items()])
    summary = table.groupby(["tasks", "support_size"], sort=False)["dice"].agg(["mean", "std", "size"]).reset_index()
    with FolderLock(RESULTS):
        write_table(summary, RESULTS / "universeg_support.csv", decimals=3)
        lines = summary.rename(columns={"mean": "dice", "tasks": "class"}).assign(ensemble=1)
        plot(pd.concat([lines, mean_line(lines)]), RESULTS / "universeg_support.png")
    logger.info("\n%s", summary.round(3).to_string(index=False))
    first, last = (
        np.array([rows.loc[rows["support_size"] == n, "dice"].mean() for rows in found.values()]) for n in (1, 16)
    )
    return int((last <= first).any())


def mean_line(lines: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of the kinds of tasks, for the plot."""
    means = lines.groupby("support_size")["dice"].mean().reset_index()
    return means.assign(**{"class": "mean", "ensemble": 1})


if __name__ == "__main__":
    sys.exit(main())
