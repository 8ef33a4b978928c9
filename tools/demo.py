"""The demonstration: `python -m tools.demo [--input IMAGE --label LABEL]`.

Makes torso phantoms, then runs the bundle's own commands at reduced size: train, evaluate, segment. Leaves `demo/` with
scores, label map, preview and GIF, and prints where they are. With a real pair of files, the network of the phantoms is
fine-tuned on it, and `demo/pair/` gets the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.common.threads import SETTINGS
from tools.phantom import write_cohort

ROOT = Path(__file__).resolve().parents[1]
PLAIN_WORD = re.compile(r"[\w./#=-]+")
BUNDLE = ROOT / "bundles" / "swin_bob_btcv"
REDUCED_NETWORK = {
    "network_def#feature_size": 12,
    "network_def#depths": [1, 1, 1, 1],
    "network_def#window_size": 4,
    "patch_size": [64, 64, 64],
    "spacing_mm": [4.0, 4.0, 4.0],
    "sw_batch_size": 1,
    "num_workers": 0,
}
# A few minutes are too few to average out augmentation; they need a high rate and a push for the small organs.
REDUCED_TRAINING = {
    "network_def#use_checkpoint": False,
    "loss#batch": True,
    "loss#weight": "$torch.tensor([0.3, 1, 1, 1, 2, 2, 1, 1, 1, 1, 2, 2, 4, 4])",
    "warmup_epochs": 2,
    "flip_prob": 0,
    "rotate_prob": 0,
    "intensity_prob": 0,
}
PHANTOMS = {"max_epochs": 45, "learning_rate": 0.01, "crops_per_case": 1}
PAIR = {"max_epochs": 120, "learning_rate": 0.004, "crops_per_case": 2, "allow_overlap": True}
logger = logging.getLogger("demo")


def run(settings: dict[str, Any], *configs: str, bundle: Path = BUNDLE) -> None:
    """Print and run the command that a user would type in a bundle's folder.

    Raises:
        SystemExit: the command failed.
    """
    paths = [f"configs/{name}" for name in configs]
    words = ["python", "-m", "monai.bundle", "run", "--config_file", str(paths) if len(paths) > 1 else paths[0]]
    for key, value in settings.items():
        words += [f"--{key}", str(value) if isinstance(value, str | bool) else json.dumps(value)]
    typed = [word if PLAIN_WORD.fullmatch(word) else f'"{word}"' for word in words]
    logger.info("\n$ cd %s; %s\n", bundle.relative_to(ROOT), " ".join(typed).replace("$", "\\$"))
    environment = {**SETTINGS, **os.environ}
    done = subprocess.run([sys.executable, *words[1:]], cwd=bundle, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the command above failed with exit code {done.returncode}")


def write_pair(out: Path, image: Path, label: Path) -> None:
    """Make a data set of one real pair, which is trained on and measured: an overfit check.

    Args:
        out: folder for the data set.
        image: NIfTI image.
        label: NIfTI label map on its grid.

    Raises:
        SystemExit: a file does not exist.
    """
    case = {}
    for key, source in (("image", image), ("label", label)):
        if not source.is_file():
            raise SystemExit(f"{source}: no such file; give --{'input' if key == 'image' else 'label'} another")
        target = out / f"{key}s" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        case[key] = str(target.relative_to(out))
    content = {name: [case] for name in ("training", "validation", "test")}
    (out / "dataset_0.json").write_text(json.dumps(content, indent=4))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="a real image to fine-tune on and segment")
    parser.add_argument("--label", type=Path, help="its label map in BTCV's numbering")
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="folder for all results (default: demo)")
    args = parser.parse_args(argv)
    if (args.input is None) != (args.label is None):
        parser.error("--input and --label go together: training needs both")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args.out.resolve()
    weights = out / "models" / "model.pt"
    if args.input is None or not weights.is_file():
        shutil.rmtree(out, ignore_errors=True)
        write_cohort(out / "data", cases=10, seed=0)
        demonstrate(out, PHANTOMS, what="a held-out phantom")
    if args.input is not None:
        shutil.rmtree(out / "pair", ignore_errors=True)
        write_pair(out / "pair" / "data", args.input, args.label)
        fine_tuning = {**PAIR, "pretrained": str(weights)}
        demonstrate(out / "pair", fine_tuning, what="the scan that it was fine-tuned on, an overfit check")
    return 0


def demonstrate(out: Path, schedule: dict[str, Any], *, what: str) -> None:
    """Train, evaluate and segment with the bundle's own configs, and print the scores and where everything is.

    Args:
        out: folder of the results, with the data set in `data`.
        schedule: settings of the training.
        what: the case that is measured.
    """
    start = time.monotonic()
    data = {**REDUCED_NETWORK, "dataset_dir": str(out / "data")}
    training = {**data, **REDUCED_TRAINING, **schedule, "ckpt_dir": str(out / "models")}
    val_interval = max(1, schedule["max_epochs"] // 8)
    run({**training, "val_interval": val_interval, "output_dir": str(out / "runs")}, "train.json")
    run({**training, "output_dir": str(out), "eval_split": "test"}, "train.json", "evaluate.json")
    segment = {"output_dir": str(out), "ckpt_path": str(out / "models" / "model.pt"), "gif": True}
    run({**data, **segment}, "inference.json")
    summary = pd.read_csv(out / "summary.csv", index_col="organ")
    columns = ["mean_dice", "mean_hd95_mm", "mean_asd_mm", "mean_surface_dice"]
    minutes = (time.monotonic() - start) / 60
    logger.info("\n%s", summary[columns].to_string(float_format="%.3f"))
    logger.info("\nMean Dice on %s: %.3f, after %.1f minutes. Look at", what, summary["mean_dice"]["mean"], minutes)
    for path in sorted(out.glob("*.*")):
        logger.info("  %s", path)


if __name__ == "__main__":
    sys.exit(main())
