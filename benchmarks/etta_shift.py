"""Whether test-time adaptation helps: `python -m benchmarks.etta_shift`.

Segments held-out phantoms, clean and under eight shifts at three strengths each, with the plain network and with ways
to adapt it, all in one run; with `--real` also the real scan of `make demo INPUT=… LABEL=…`, which its network was
fine-tuned on. The networks are those of `make demo`. Then measures time and peak memory by the number of
windows, each in a fresh process. Writes `results/etta_shift.csv`, `etta_cost.csv` and `etta_shift.png`.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SwinUNETR
from monai.transforms import (
    AdjustContrast,
    Compose,
    CropForegroundd,
    GaussianSmooth,
    Orientationd,
    RandBiasField,
    ScaleIntensityRanged,
)
from torch.nn.functional import interpolate
from tqdm import tqdm

from benchmarks.restore_label_map import memory_mb
from scripts.cases import write_table
from scripts.etta import ETTAInferer, ETTASettings
from scripts.files import atomic_path
from scripts.transforms import LoadVolumed, Spacingd
from scripts.weights import load_weights
from tools.phantom import write_cohort

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
NETWORK = {"in_channels": 1, "out_channels": 14, "feature_size": 12, "depths": (1, 1, 1, 1), "window_size": 4}
UNGUARDED = {"guard": False, "hold": 0.0}
WAYS = {
    "paper: SGD 0.01, 3 steps, all windows": {
        **UNGUARDED,
        "steps": 3,
        "lr": 0.01,
        "optimizer": "sgd",
        "windows_per_step": None,
    },
    "Tent: Adam 0.001, 1 step, all windows": {**UNGUARDED, "lr": 0.001, "windows_per_step": None},
    "InTEnt's balance: as Tent": {**UNGUARDED, "lr": 0.001, "windows_per_step": None, "objective": "balanced"},
    "ours without guard": {"guard": False},
    "ours": {},
}
logger = logging.getLogger(__name__)


def contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Draw intensities towards their mean."""
    return (image - image.mean()) * factor + image.mean()


def bias(image: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Multiply by a smooth field, the same for all strengths but for its amplitude."""
    field = RandBiasField(prob=1, coeff_range=(0, coefficient)).set_random_state(1)
    return torch.as_tensor(field(image[0]))[None]


def noise(image: torch.Tensor, sd: float) -> torch.Tensor:
    """Add Gaussian noise."""
    return image + sd * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))


def low_resolution(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Sample on a grid `factor` times as coarse, and back."""
    coarse = interpolate(image, scale_factor=1 / factor, mode="trilinear")
    return interpolate(coarse, size=image.shape[2:], mode="trilinear")


def ghosting(image: torch.Tensor, intensity: float) -> torch.Tensor:
    """Weaken every fourth line of k-space, which repeats the patient along the first axis."""
    lines = torch.ones(image.shape[2])
    lines[4::4] = 1 - intensity
    return torch.fft.ifftn(torch.fft.fftn(image[0, 0]) * lines[:, None, None]).real[None, None]


def gamma(image: torch.Tensor, exponent: float) -> torch.Tensor:
    """Raise intensities, scaled to 0..1, to a power."""
    return torch.as_tensor(AdjustContrast(gamma=exponent)(image[0]))[None]


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Smooth by a Gaussian of `sigma` voxels."""
    return torch.as_tensor(GaussianSmooth(sigma=sigma)(image[0]))[None]


SHIFTS: dict[str, tuple[Callable[[torch.Tensor, float], torch.Tensor], tuple[float, ...]]] = {
    "clean": (lambda image, _: image, (0,)),
    "gamma above 1": (gamma, (1.3, 1.7, 2.2)),
    "gamma below 1": (gamma, (0.75, 0.6, 0.45)),
    "contrast": (contrast, (0.85, 0.7, 0.5)),
    "bias field": (bias, (0.2, 0.4, 0.6)),
    "noise": (noise, (0.05, 0.1, 0.2)),
    "blur": (blur, (0.5, 1.0, 1.5)),
    "low resolution": (low_resolution, (1.5, 2, 3)),
    "ghosting": (ghosting, (0.3, 0.6, 0.9)),
}


def inferer() -> SlidingWindowInferer:
    """Return the bundle's inferer at the demo's size."""
    return SlidingWindowInferer(roi_size=(64, 64, 64), sw_batch_size=1, overlap=0.5, mode="gaussian")


@cache
def network(checkpoint: str) -> torch.nn.Module:
    """Load the demo's network."""
    torch.set_num_threads(1)
    module = SwinUNETR(**NETWORK)
    load_weights(module, checkpoint)
    return module.eval()


@cache
def read(image: str, label: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring a case to the network's grid: image (1, 1, X, Y, Z), label (X, Y, Z)."""
    keys = ["image", "label"]
    transform = Compose(
        [
            LoadVolumed(keys),
            Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd(keys, pixdim=[4.0] * 3, mode=["bilinear", "nearest"]),
            ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True),
            CropForegroundd(keys, source_key="image"),
        ]
    )
    case = transform({"image": image, "label": label})
    return MetaTensor(case["image"]).as_tensor()[None], MetaTensor(case["label"]).as_tensor()[0].long()


def mean_dice(logits: torch.Tensor, label: torch.Tensor) -> float:
    """Return the mean Dice of the organs that label or prediction has, in points of 100."""
    pred = logits[0].argmax(0)
    pairs = [(pred == k, label == k) for k in range(1, logits.shape[1])]
    scores = [2 * float((p & t).sum()) / float(p.sum() + t.sum()) for p, t in pairs if p.any() or t.any()]
    return 100 * float(np.mean(scores))


@torch.no_grad()
def compare(task: tuple[str, str, str, str, str, float]) -> list[dict[str, object]]:
    """Segment one case under one shift in every way; a row each."""
    data, checkpoint, image_path, label_path, shift, strength = task
    image, label = read(image_path, label_path)
    image = SHIFTS[shift][0](image, strength).float().contiguous()
    module, plain = network(checkpoint), inferer()
    start = time.perf_counter()
    before = mean_dice(plain(image, module), label)
    plain_seconds = time.perf_counter() - start
    rows = []
    for way, settings in WAYS.items():
        adapting, start = ETTAInferer(plain, ETTASettings(**settings)), time.perf_counter()
        change = mean_dice(adapting(image, module), label) - before
        seconds = time.perf_counter() - start
        row = {"data": data, "case": Path(image_path).name, "shift": shift, "strength": strength, "way": way}
        row |= {"plain": before, "change": change, "accepted": adapting.outcomes[0].accepted}
        rows.append({**row, "reason": adapting.outcomes[0].reason, "time_ratio": seconds / plain_seconds})
    return rows


def cost(way: str, size: int, checkpoint: str) -> dict[str, float]:
    """Measure one way on a volume of `size` voxels along each axis: seconds and MB above the start."""
    module, image = network(checkpoint), torch.rand(1, 1, size, size, size)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    if way == "training step":
        module(image[..., :64, :64, :64]).square().mean().backward()
    else:
        predict = inferer() if way == "plain" else ETTAInferer(inferer(), ETTASettings(**WAYS[way]))
        with torch.no_grad():
            predict(image, module)
    return {"seconds": time.perf_counter() - start, "peak_mb": memory_mb("VmHWM") - before}


def cost_table(checkpoint: str) -> pd.DataFrame:
    """Compare ours with the plain network for 8, 27 and 64 windows."""
    rows = []
    for size in (96, 128, 160):
        measured = {}
        for way in ("plain", "training step", "ours"):
            command = [sys.executable, "-m", "benchmarks.etta_shift", "--cost", way, str(size)]
            done = subprocess.run([*command, "--checkpoint", checkpoint], check=True, capture_output=True, text=True)
            measured[way] = json.loads(done.stdout.splitlines()[-1])
        rows.append(cost_row((size // 32 - 1) ** 3, measured))
    return pd.DataFrame(rows)


def cost_row(windows: int, measured: dict[str, dict[str, float]]) -> dict[str, float]:
    """Turn what was measured for one volume into ratios."""
    plain, step, ours = (measured[way] for way in ("plain", "training step", "ours"))
    return {
        "windows": windows,
        "time_over_plain": ours["seconds"] / plain["seconds"],
        "peak_over_plain_and_training_step": ours["peak_mb"] / (plain["peak_mb"] + step["peak_mb"]),
        "plain_peak_mb": plain["peak_mb"],
        "ours_peak_mb": ours["peak_mb"],
    }


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Average over cases and strengths: mean change, worst case and accepted share by shift and way."""
    grouped = rows.groupby(["data", "way", "shift"], sort=False)
    table = grouped.agg(
        plain=("plain", "mean"),
        mean_change=("change", "mean"),
        worst_change=("change", "min"),
        accepted=("accepted", "mean"),
        time_ratio=("time_ratio", "mean"),
    )
    return table.reset_index().round(2)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the mean change of each way under each shift, for the phantoms."""
    pivot = table[table["data"] == "phantoms"].pivot(index="shift", columns="way", values="mean_change")
    pivot = pivot.loc[list(SHIFTS), list(WAYS)]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axis = figure.subplots()
    for offset, way in enumerate(WAYS):
        axis.bar(np.arange(len(pivot)) + 0.16 * (offset - 2), pivot[way], width=0.16, label=way)
    axis.set_xticks(np.arange(len(pivot)), pivot.index, rotation=20)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylabel("change of mean Dice (points)")
    axis.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def tasks(checkpoint: Path, folder: Path, cases: int, *, real: bool) -> list[tuple[str, str, str, str, str, float]]:
    """List every case under every shift; phantoms of a seed that no training saw."""
    pairs = []
    write_cohort(folder, cases=cases + 2, seed=1000)
    for image in sorted((folder / "imagesTr").iterdir())[:cases]:
        pairs.append(("phantoms", checkpoint, image, folder / "labelsTr" / image.name))
    tuned = checkpoint.parents[1] / "pair"
    if real:
        image, label = (next((tuned / "data" / name).iterdir()) for name in ("images", "labels"))
        pairs.append(("real scan, seen in training", tuned / "models" / "model.pt", image, label))
    conditions = [(shift, strength) for shift, (_, strengths) in SHIFTS.items() for strength in strengths]
    return [(data, *map(str, paths), *condition) for data, *paths in pairs for condition in conditions]


def main() -> int:
    """Run both parts and write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "demo/models/model.pt", help="of `make demo`")
    parser.add_argument("--cases", type=int, default=1, help="held-out phantoms (default: 1)")
    parser.add_argument("--real", action="store_true", help="also the scan of `make demo INPUT=… LABEL=…`")
    parser.add_argument("--part", choices=("shift", "cost", "both"), default="both", help="default: both")
    parser.add_argument("--cost", nargs=2, metavar=("WAY", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cost:
        sys.stdout.write(json.dumps(cost(args.cost[0], int(args.cost[1]), str(args.checkpoint))))
        return 0
    if not args.checkpoint.is_file():
        parser.error(f"{args.checkpoint}: no such file; run `make demo` first")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.part in ("shift", "both"):
        shift_part(tasks(args.checkpoint, args.checkpoint.parents[1] / "etta_shift", args.cases, real=args.real))
    if args.part in ("cost", "both"):
        costs = cost_table(str(args.checkpoint))
        logger.info("\n%s", costs.to_string())
        write_table(costs, RESULTS / "etta_cost.csv", decimals=2)
    return 0


def shift_part(work: list[tuple[str, str, str, str, str, float]]) -> None:
    """Compare all ways on all conditions; write the table and the plot."""
    with ProcessPoolExecutor(2) as pool:
        found = list(tqdm(pool.map(compare, work), total=len(work), unit="image"))
    rows = pd.DataFrame([row for some in found for row in some])
    table = summarise(rows)
    write_table(table, RESULTS / "etta_shift.csv", decimals=2)
    draw(table, RESULTS / "etta_shift.png")
    shifted = rows[rows["shift"] != "clean"].groupby(["data", "way"], sort=False)
    logger.info("%s\n\n%s", table.to_string(), shifted["change"].agg(["mean", "min"]).round(2))
    logger.info("\n%s", rows[rows["way"] == "ours"]["reason"].str.replace(r"\d.*", "", regex=True).value_counts())


if __name__ == "__main__":
    sys.exit(main())
