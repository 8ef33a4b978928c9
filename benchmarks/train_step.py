"""Seconds of a training step, stock against ours: `python -m benchmarks.train_step [--load] [--device cuda]`.

Each way runs in processes of its own, because OpenMP and malloc read their settings when a process starts; the ways
take turns. With `--load`, as many processes as the machine has cores compute beside them. A step is that of
`swin_bob_btcv` on a phantom: crops and augmentation, forward, backward, optimizer. `--full` takes the network of the
bundle at 96 voxels instead of the demo's. `--loss` compares the losses of stock and ours after 50 steps instead.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.networks.nets import SwinUNETR
from monai.transforms import Compose
from monai.utils import set_determinism

from scripts.common.files import write_table
from scripts.common.threads import MALLOC, PASSIVE
from scripts.models.swin_unetr import patch_merging
from tools.phantom import torso_phantom

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).resolve().parents[1] / "bundles" / "swin_bob_btcv" / "configs"
DEMO = {"feature_size": 12, "depths": (1, 1, 1, 1), "window_size": 4}
WAYS: dict[str, dict[str, Any]] = {
    "stock": {},
    "fused AdamW": {"fused": True},
    "channels_last_3d": {"channels_last": True},
    "waiting threads sleep": {"environment": PASSIVE},
    "memory is kept": {"environment": MALLOC},
    "ours: sleep, keep, fused": {"environment": {**PASSIVE, **MALLOC}, "fused": True},
    "one thread": {"environment": {"OMP_NUM_THREADS": "1"}},
}
PHASES = ("augment", "forward", "backward", "optimizer")
LOSS_WAYS, LOSS_STEPS = ["stock", "ours: sleep, keep, fused"], 50
logger = logging.getLogger(__name__)


def train(way: dict[str, Any], *, steps: int, device: str, full: bool) -> dict[str, float]:
    """Train from the same weights on the same crops; return the median seconds of each phase and the last loss."""
    set_determinism(0)
    edge = 96 if full else 64
    arguments = {"feature_size": 48, "use_checkpoint": True} if full else DEMO
    network = SwinUNETR(1, 14, downsample=patch_merging(False), **arguments).to(device)
    memory_format = torch.channels_last_3d if way.get("channels_last") else torch.contiguous_format
    network = network.to(memory_format=memory_format)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=way.get("fused", False))
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, smooth_nr=0.0, smooth_dr=1e-6)
    augment, volume = _random_transforms(edge), _phantom()
    seconds = []
    for _ in range(steps):
        marks = [_now(device)]
        crops = augment(volume)
        image, label = (torch.stack([crop[key].as_tensor() for crop in crops]).to(device) for key in ("image", "label"))
        marks.append(_now(device))
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_function(network(image.contiguous(memory_format=memory_format)).float(), label)
        marks.append(_now(device))
        loss.backward()
        marks.append(_now(device))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(_now(device))
        seconds.append(np.diff(marks))
    medians = np.median(seconds[1:], axis=0)  # the first warms up
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**dict(zip(PHASES, medians, strict=True)), "loss": loss.item(), "peak_mb": peak_mb}


def _random_transforms(edge: int) -> Compose:
    """Return the random transforms of the bundle, for one crop per case."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.json"))
    parser.read_meta(str(CONFIGS / "metadata.json"))
    parser.update({"patch_size": [edge] * 3, "crops_per_case": 1})
    return Compose(parser.get_parsed_content("train#random_transforms")).set_random_state(0)


def _phantom() -> dict[str, MetaTensor]:
    image, label = torso_phantom(np.random.default_rng(0), (110, 100, 110), (3.0, 3.0, 3.0))
    image = np.clip((image.astype(np.float32) + 175) / 425, 0, 1)
    return {"image": MetaTensor(image[None]), "label": MetaTensor(label[None].astype(np.float32))}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure a way in a fresh process."""
    arguments = ["--child", name, "--steps", str(options.steps), "--device", options.device]
    environment = {key: value for key, value in os.environ.items() if key not in {**PASSIVE, **MALLOC}}
    environment |= WAYS[name].get("environment", {})
    command = [sys.executable, "-m", "benchmarks.train_step", *arguments, *(["--full"] if options.full else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def competing_load(processes: int) -> Iterator[None]:
    """Keep processes busy while the block runs."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def compare_losses(options: argparse.Namespace) -> None:
    """Train both ways from the same seed, print their losses, and write `results/train_step_loss.csv`."""
    options.steps = LOSS_STEPS
    table = pd.DataFrame({"way": LOSS_WAYS, "steps": LOSS_STEPS, "loss": [run(n, options)["loss"] for n in LOSS_WAYS]})
    table["relative_difference"] = table["loss"] / table["loss"][0] - 1
    logger.info("\n%s", table.to_string(index=False, float_format="%.7g"))
    write_table(table, RESULTS / "train_step_loss.csv", decimals=7)


def main() -> int:
    """Measure, print the table, and write `results/train_step.csv` or, with a load, `results/train_step_load.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--full", action="store_true", help="the network of the bundle at 96 voxels")
    parser.add_argument("--load", action="store_true", help="beside as many busy processes as there are cores")
    parser.add_argument("--loss", action="store_true", help="only compare the losses after 50 steps")
    options = parser.parse_args()
    if options.child:
        result = train(WAYS[options.child], steps=options.steps, device=options.device, full=options.full)
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    if options.loss:
        compare_losses(options)
        return 0
    rows = []
    with competing_load((os.cpu_count() or 1) if options.load else 0):
        for repeat in range(options.repeats):
            for name in options.ways:
                rows.append({"way": name, "repeat": repeat, **run(name, options)})
                logger.info("%s", rows[-1])
    table = pd.DataFrame(rows)
    table["step"] = table[list(PHASES)].sum(axis=1)
    stock = table[table["way"] == options.ways[0]].set_index("repeat")["step"]
    table["speedup"] = table["repeat"].map(stock) / table["step"]
    table = table.groupby("way", sort=False).median().drop(columns="repeat").reset_index()
    logger.info("\n%s", table.to_string(index=False, float_format="%.4g"))
    parts = ["train_step", *(["full"] if options.full else []), *(["load"] if options.load else [])]
    write_table(table, RESULTS / f"{'_'.join(parts)}.csv")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
