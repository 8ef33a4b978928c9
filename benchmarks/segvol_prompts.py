"""Train segvol from nothing and score each kind of prompt: `python -m benchmarks.segvol_prompts [--weights MODEL.pt]`.

Trains the bundle at reduced size with its own command on coarse phantoms, of which six organs are labelled, then
evaluates it on other phantoms. Writes `results/segvol_prompts.csv` and `.png`, and says which targets are missed.
`--no-clicks` trains without corrections, `--published` with tight boxes, too: `results/segvol_prompts_<way>.csv`.
`--zoom` measures what windows give, on phantoms that are finer than the network's volume: `results/segvol_zoom.csv`.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.common.files import write_json, write_table
from scripts.common.locks import FolderLock
from tools import demo
from tools.phantom import write_cohort

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
BUNDLE = demo.BUNDLES / "segvol"
ORGANS = (1, 2, 3, 6, 7, 8)  # spleen, kidneys, liver, stomach, aorta: more than a few voxels at this size
SHAPE, SPACING_MM = (40, 32, 36), (7.5, 6.9, 7.2)
CASES, VALIDATION, TEST = 32, 2, 6
REDUCED = {
    "network_def#spatial_size": [32, 32, 32],
    "network_def#patch_size": [4, 4, 4],
    "network_def#hidden_size": 64,
    "network_def#mlp_dim": 128,
    "network_def#num_layers": 4,
    "network_def#num_heads": 4,
    "network_def#decoder_heads": 4,
    "network_def#decoder_mlp_dim": 128,
    "network_def#text_width": 64,
    "network_def#text_layers": 2,
    "network_def#text_heads": 4,
    "network_def#text_mlp_dim": 128,
    "num_workers": 0,
}
# The phantoms are as coarse as the network's volume, so that there is nothing to zoom into.
TRAINING = {
    "max_epochs": 60,
    "warmup_epochs": 1,
    "val_interval": 10,
    "learning_rate": 0.001,
    "crop_prob": 0.0,
    "flip_prob": 0.0,
    "prompted#use_checkpoint": False,
}
PUBLISHED = {"box_jitter": 0.0, "correction_clicks": 0}
WAYS = {
    "whole": {},
    "no_clicks": {"correction_clicks": 0},
    "published": PUBLISHED,
    "zoom": {**PUBLISHED, "crop_prob": 0.5, "max_epochs": 120},
}
TARGETS = {"box": 0.8, "box moved by up to 30 %": 0.7, "points": 0.6, "gain by 10 clicks over 1": 0.03}
logger = logging.getLogger("segvol_prompts")


def write_data(out: Path, *, finer: int = 1) -> Path:
    """Write phantoms, several of which are for test, and return the folder."""
    sizes = {"shape": tuple(finer * n for n in SHAPE), "spacing_mm": tuple(mm / finer for mm in SPACING_MM)}
    path = write_cohort(out, cases=CASES, seed=0, organs=ORGANS, **sizes)
    content = json.loads(path.read_text())
    items = [item for section in ("training", "validation", "test") for item in content[section]]
    ends = (CASES - VALIDATION - TEST, CASES - TEST)
    content |= {"training": items[: ends[0]], "validation": items[ends[0] : ends[1]], "test": items[ends[1] :]}
    write_json(path, content)
    return out


def main() -> int:
    """Train, if no weights are given, and score; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "segvol", help="folder (default: demo/segvol)")
    parser.add_argument("--weights", type=Path, help="trained before; by default they are trained now")
    ways = parser.add_mutually_exclusive_group()
    parser.set_defaults(way="whole")
    for way, text in (
        ("no_clicks", "train without corrections"),
        ("published", "train with tight boxes and without corrections"),
        ("zoom", "finer phantoms and crops, to measure what windows give"),
    ):
        ways.add_argument(f"--{way.replace('_', '-')}", dest="way", action="store_const", const=way, help=text)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out, is_zoom = args.out.resolve() / args.way, args.way == "zoom"
    folders = {
        "dataset_dir": str(write_data(out / "data", finer=2 if is_zoom else 1)),
        "ckpt_dir": str(out / "models"),
    }
    if not args.weights:
        start = time.monotonic()
        given = {**REDUCED, **TRAINING, **WAYS[args.way], **folders}
        demo.run(BUNDLE, {**given, "output_dir": str(out / "runs")}, "train.json")
        logger.info("trained in %.1f min", (time.monotonic() - start) / 60)
    weights = (args.weights or out / "models" / "model.pt").resolve()
    settings = {**REDUCED, **folders, "ckpt_path": str(weights)}
    if is_zoom:
        return measure_zoom(out, settings)
    return measure_prompts(out, settings, "segvol_prompts" if args.way == "whole" else f"segvol_prompts_{args.way}")


def evaluate(out: Path, settings: dict[str, Any], **more: Any) -> pd.DataFrame:
    """Score the test cases and return the summary."""
    settings = {**settings, "output_dir": str(out), "eval_split": "test", **more}
    demo.run(BUNDLE, settings, "train.json", "evaluate.json")
    return pd.read_csv(out / "summary.csv")


def measure_prompts(out: Path, settings: dict[str, Any], name: str) -> int:
    """Score all prompts without windows, and write tables of a name."""
    summary = evaluate(out / "eval", settings, zoom_in=False)
    with FolderLock(RESULTS):
        write_table(summary, RESULTS / f"{name}.csv", decimals=3)
        shutil.copyfile(out / "eval" / "prompts.png", RESULTS / f"{name}.png")
    return report(summary)


def measure_zoom(out: Path, settings: dict[str, Any]) -> int:
    """Score exact prompts without windows and with them."""
    ways = {"whole": {"zoom_in": False}, "windows": {"zoom_in": True}}
    tables = []
    for way, more in ways.items():
        summary = evaluate(out / way, settings, clicks=[1], jitter=[0.1], **more)
        tables.append(summary[(summary["clicks"] == 0) & (summary["jitter"] == 0)].assign(way=way))
    table = pd.concat(tables).pivot(index=["organ", "prompt"], columns="way", values="dice")[[*ways]].reset_index()
    logger.info("\n%s", table.round(3).to_string())
    with FolderLock(RESULTS):
        write_table(table, RESULTS / "segvol_zoom.csv", decimals=3)
    return 0


def report(summary: pd.DataFrame) -> int:
    """Log Dice by organ and prompt; return 1 if a target is missed."""
    exact = summary[(summary["clicks"] == 0) & (summary["jitter"] == 0)]
    table = exact.pivot(index="organ", columns="prompt", values="dice")
    logger.info("\n%s", table.round(3).to_string())
    dice = summary[summary["organ"] == "mean"].set_index(["prompt", "clicks", "jitter"])["dice"]
    clicks = dice["clicks", 10, 0] - dice["clicks", 1, 0]
    values = (dice["box", 0, 0], dice["box", 0, 0.3], dice["points", 0, 0], clicks)
    missed = [(name, value) for name, value in zip(TARGETS, values, strict=True) if value < TARGETS[name]]
    for name, value in missed:
        logger.info("missed: Dice of %s is %.3f, the target %.2f", name, value, TARGETS[name])
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
