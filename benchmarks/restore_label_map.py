"""Ways to restore a label map on the grid of the input: `python -m benchmarks.restore_label_map`.

Compares three ways in one run, each in a fresh process so that its peak memory is its own: `RestoreLabelMapd` (one
class at a time), MONAI's `Invertd` of all logits followed by argmax, and argmax followed by `Invertd` of the class map
with nearest neighbours, as Model Zoo bundles do. Dice is against a label map that is known on the input's grid.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd

from scripts.common.files import write_table
from scripts.data.transforms import Spacingd
from scripts.inference.restore import RestoreLabelMapd
from scripts.io.loading import LoadVolumed
from tools.phantom import torso_phantom

RESULTS = Path(__file__).parent / "results"
WAYS = ("ours: one class at a time", "Invertd of all logits, argmax", "argmax, Invertd by nearest neighbour")
SHAPE, SPACING_MM = (250, 184, 130), (1.2, 1.2, 2.0)
NETWORK_SPACING_MM = (3.0, 3.0, 3.0)
CLASSES = 14
logger = logging.getLogger(__name__)


def prepare(folder: Path) -> None:
    """Write a phantom and the logits that a perfect network would give on the coarser grid."""
    image, label = torso_phantom(np.random.default_rng(0), SHAPE, SPACING_MM)
    affine = np.diag([*SPACING_MM, 1.0])
    nib.save(nib.Nifti1Image(image, affine), folder / "image.nii.gz")
    np.save(folder / "label.npy", label)
    preprocessing = transforms()
    data = preprocessing({"image": str(folder / "image.nii.gz")})
    resample = Spacingd("c", pixdim=NETWORK_SPACING_MM, mode="bilinear")
    channels = []
    for index in range(CLASSES):
        one = MetaTensor(torch.from_numpy((label == index).astype(np.float32))[None], affine=affine)
        channels.append(8 * resample({"c": one})["c"].as_tensor())
    torch.save({"logits": torch.cat(channels), "shape": list(data["image"].shape)}, folder / "logits.pt")


def transforms() -> Compose:
    """Return the spatial part of the bundles' preprocessing."""
    return Compose(
        [
            LoadVolumed("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=NETWORK_SPACING_MM, mode="bilinear"),
        ]
    )


def measure(folder: Path, way: str) -> dict[str, float]:
    """Restore once; return seconds, peak memory above the start in MB, and mean Dice."""
    preprocessing = transforms()
    data = preprocessing({"image": str(folder / "image.nii.gz")})
    data["pred"] = MetaTensor(torch.load(folder / "logits.pt", weights_only=True)["logits"])
    label = np.load(folder / "label.npy")
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    start = time.perf_counter()
    if way == WAYS[0]:
        classes = RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)(data)["pred"][0]
    elif way == WAYS[1]:
        inverse = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
        classes = inverse(data)["pred"].argmax(0)
    else:
        data["pred"] = MetaTensor(data["pred"].argmax(0, keepdim=True).float())
        classes = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=True)(data)["pred"][0]
    seconds, classes = time.perf_counter() - start, np.asarray(classes)
    dice = [
        2 * ((classes == k) & (label == k)).sum() / ((classes == k).sum() + (label == k).sum())
        for k in range(1, CLASSES)
    ]
    return {"seconds": seconds, "peak_mb": memory_mb("VmHWM") - before, "mean_dice": float(np.mean(dice))}


def memory_mb(name: str) -> float:
    """Return this process's resident memory, now (VmRSS) or at its highest (VmHWM), as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> int:
    """Measure each way in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(measure(Path(args.one[0]), args.one[1])))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.restore_label_map", "--one", folder, way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append({"way": way, **json.loads(done.stdout.splitlines()[-1])})
    table = pd.DataFrame(rows)
    table["time_ratio"] = table["seconds"] / table["seconds"][0]
    table["memory_ratio"] = table["peak_mb"] / table["peak_mb"][0]
    table = table.drop(columns="seconds")
    logger.info("%s", table.round(3).to_string(index=False))
    write_table(table, RESULTS / "restore_label_map.csv", decimals=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
