"""Measure whether adapting the input helps a brain network: `python -m benchmarks.etta_brain`, after `brats_phantom`.

Held-out brain phantoms are shifted as raw scans of four sequences, each sequence in the same way, and then preprocessed
as the bundle does. Writes `results/etta_brain_images.csv` and `results/etta_brain.csv`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.metrics import compute_dice
from monai.transforms import Compose, GaussianSmooth, RandBiasField
from tqdm import tqdm

from benchmarks.brats_phantom import BUNDLE, REDUCED_NETWORK, ROOT
from benchmarks.etta_input import interval
from benchmarks.etta_shift import RESULTS
from scripts.brats.regions import BratsRegionsd
from scripts.common.files import write_table
from scripts.etta.inferer import ETTAInferer
from scripts.etta.settings import ETTASettings
from scripts.etta.spectrum_file import read_spectrum
from scripts.models.weights import load_weights
from tools.brain_phantom import write_cohort

FOLDER = ROOT / "demo" / "brats"
SEED, CASES = 1000, 4
logger = logging.getLogger(__name__)


def gamma(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """Raise the share of the maximum to a power."""
    return x.amax() * (x / x.amax()) ** exponent


def bias(x: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Multiply by a smooth field."""
    return torch.as_tensor(RandBiasField(prob=1, coeff_range=(0, coefficient)).set_random_state(1)(x[None]))[0]


def rician(x: torch.Tensor, sd: float) -> torch.Tensor:
    """Take the magnitude after noise, of a share of the maximum, in both parts of a complex signal."""
    generator = torch.Generator().manual_seed(0)
    real, imaginary = (sd * x.amax() * torch.randn(x.shape, generator=generator) for _ in range(2))
    return torch.hypot(x + real, imaginary)


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Smooth by a Gaussian of `sigma` voxels."""
    return torch.as_tensor(GaussianSmooth(sigma=sigma)(x[None]))[0]


SHIFTS: dict[str, tuple[Callable[[torch.Tensor, float], torch.Tensor], tuple[float, ...]]] = {
    "clean": (lambda x, _: x, (0,)),
    "gamma": (gamma, (0.6, 1.6)),
    "bias field": (bias, (0.3, 0.6)),
    "Rician noise": (rician, (0.05, 0.15)),
    "blur": (blur, (0.7, 1.2)),
}


def parts() -> tuple[list[Any], torch.nn.Module]:
    """Return the bundle's deterministic transforms at the reduced size, and its trained network."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser.read_meta(str(BUNDLE / "configs" / "metadata.json"))
    parser.update(REDUCED_NETWORK)
    network = parser.get_parsed_content("network_def")
    load_weights(network, str(FOLDER / "models" / "model.pt"))
    return parser.get_parsed_content("train#deterministic_transforms"), network.eval()


@torch.no_grad()
def rows() -> list[dict[str, Any]]:
    """Segment each phantom under each shift, plain and adapted."""
    fixed, network = parts()
    inferer = SlidingWindowInferer(roi_size=REDUCED_NETWORK["patch_size"], overlap=0.5, mode="gaussian")
    settings = ETTASettings(activation="sigmoid", spectrum=read_spectrum(FOLDER / "models" / "spectrum.json"))
    regions, found = BratsRegionsd("label"), []
    cohort = write_cohort(FOLDER / "etta", cases=CASES + 2, seed=SEED).parent
    folders = sorted(path for path in cohort.iterdir() if path.is_dir())[:CASES]
    work = [(f, s, strength) for f in folders for s, (_, many) in SHIFTS.items() for strength in many]
    for folder, shift, strength in tqdm(work):
        data = fixed[0](case_of(folder))
        brain = data["image"] != 0
        moved = torch.stack([SHIFTS[shift][0](channel, strength) for channel in data["image"].as_tensor()])
        data["image"] = data["image"].clone().copy_(moved) * brain
        data = regions(Compose(fixed[1:])(data))
        image, label = data["image"][None].as_tensor(), data["label"][None].as_tensor()
        adapting = ETTAInferer(inferer, settings)
        scores = [mean_dice(way(image, network), label) for way in (inferer, adapting)]
        (outcome,) = adapting.outcomes
        row = {"network": "brain", "case": folder.name, "shift": shift, "strength": strength, "plain": scores[0]}
        found.append({**row, "change": scores[1] - scores[0], "accepted": outcome.accepted, "how": outcome.candidate})
    return found


def case_of(folder: Path) -> dict[str, Any]:
    """Return a case of the datalist of the cohort."""
    names = ("t1n", "t1c", "t2w", "t2f")
    files = {name: str(next(folder.glob(f"*{name}*"))) for name in (*names, "seg")}
    return {"image": [files[name] for name in names], "label": files["seg"], "case": folder.name}


def mean_dice(logits: torch.Tensor, label: torch.Tensor) -> float:
    """Return the mean Dice of the regions that the label has, in points of 100."""
    return 100 * float(np.nanmean(compute_dice((logits > 0).float(), label.float()).numpy()))


def main() -> int:
    """Measure, and write both tables."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (FOLDER / "models" / "model.pt").is_file():
        logger.error("%s has no weights: run `python -m benchmarks.brats_phantom` first", FOLDER)
        return 1
    table = pd.DataFrame(rows())
    write_table(table, RESULTS / "etta_brain_images.csv", decimals=3)
    shifted = table[table["shift"] != "clean"]
    summary = []
    for name, part in [*table.groupby("shift", sort=False), ("all shifted", shifted)]:
        low, high = interval(part)
        row = {"shift": name, "images": len(part), "plain": part["plain"].mean(), "change": part["change"].mean()}
        summary.append({**row, "low": low, "high": high, "worst_image": part["change"].min()})
    write_table(pd.DataFrame(summary), RESULTS / "etta_brain.csv", decimals=2)
    logger.info("\n%s\n%s", table.round(2).to_string(), pd.DataFrame(summary).round(2).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
