"""Ways to restore a label map on the grid of the input: `python -m benchmarks.restore`.

Compares in one run `RestoreLabelMapd` (by tiles), the same class by class, as it does for sheared volumes, and MONAI's
`Invertd` of all logits followed by `AsDiscreted`. Logits are smoothed one-hot maps of real labels, with noise, on a
grid of half the size. Each run is a fresh process, so that its peak memory is its own; the ways take turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, CropForegroundd, Invertd, Orientationd
from scipy import ndimage

from scripts.common.files import write_table
from scripts.common.threads import MALLOC
from scripts.data.transforms import Spacingd
from scripts.inference.axis_maps import way_back
from scripts.inference.restore import RestoreLabelMapd

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data"
LABELS = {
    ("ct_torso", 14): "ct_torso/label_btcv13.nii.gz",
    ("ct_torso", 73): "ct_torso/label_totalsegmentator.nii.gz",
    ("brain", 14): "brain_parcellation/label.nii.gz",
    ("brain", 73): "brain_parcellation/label.nii.gz",
}
WAYS = ("tiles", "class by class", "MONAI")
MONAI_BYTES = 20  # per voxel and class: float64 while it resamples, float32 after
SPACING_MM, NETWORK_SPACING_MM = (0.78, 0.78, 1.0), (1.5, 1.5, 2.0)
logger = logging.getLogger(__name__)


class Setup(NamedTuple):
    """What is restored: labels, number of classes, shape of the file, threads, and how often."""

    source: str
    classes: int
    shape: tuple[int, int, int]
    threads: int
    repeats: int


SMALL, LARGE = (192, 192, 160), (512, 512, 400)
SETUPS = [
    Setup("brain", 73, SMALL, 1, 2),
    Setup("ct_torso", 14, SMALL, 1, 2),
    Setup("brain", 73, SMALL, 2, 2),
    Setup("ct_torso", 14, LARGE, 2, 1),
    Setup("brain", 14, SMALL, 1, 2),
    Setup("ct_torso", 73, SMALL, 1, 2),
    Setup("brain", 73, LARGE, 2, 1),
]


def transforms() -> Compose:
    """Return the spatial part of the preprocessing of swin_bob_btcv."""
    return Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=NETWORK_SPACING_MM, mode="bilinear"),
            CropForegroundd("image", source_key="image"),
        ]
    )


def preprocessed(shape: Sequence[int], transform: Compose) -> dict[str, MetaTensor]:
    """Return a case whose border is background."""
    image = torch.zeros(1, *shape)
    image[:, 5:-4, 3:-6, 2:-1] = 1
    return transform({"image": MetaTensor(image, affine=np.diag([*np.multiply(SPACING_MM, (-1, -1, 1)), 1.0]))})


def write_logits(path: Path, setup: Setup) -> None:
    """Write logits that a network would give for the labels: 16 times the smoothed one-hot map, with noise."""
    file = DATA / LABELS[setup.source, setup.classes]
    labels = np.asarray(nib.load(file).dataobj).astype(int)
    ids = np.argsort(-np.bincount(labels[labels > 0]))[: setup.classes - 1]
    numbers = np.zeros(labels.max() + 1, dtype=np.uint8)
    numbers[ids] = range(1, len(ids) + 1)
    shape = preprocessed(setup.shape, transforms())["image"].shape[1:]
    nearest = np.ix_(*(np.arange(n) * have // n for n, have in zip(shape, labels.shape, strict=True)))
    labels = numbers[labels][nearest]
    logits = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(setup.classes, *shape))
    rng = np.random.default_rng(0)
    for index in range(setup.classes):
        smooth = ndimage.gaussian_filter((labels == index).astype(np.float32), 1)
        logits[index] = 16 * smooth + 0.3 * rng.standard_normal(shape, dtype=np.float32)


def measure(folder: Path, setup: Setup, way: str) -> dict[str, float]:
    """Restore once and write the label map; return seconds, and peak memory above the logits in bytes per voxel."""
    transform = transforms()
    case = preprocessed(setup.shape, transform)
    case["pred"] = MetaTensor(torch.from_numpy(np.load(folder / "logits.npy")))
    restore = RestoreLabelMapd("pred", orig_keys="image", transform=transform)
    if way == "class by class":
        restore.maps_of = lambda _: None
    elif way == "MONAI":
        invert = Invertd("pred", transform=transform, orig_keys="image", nearest_interp=False)
        restore = Compose([invert, AsDiscreted("pred", argmax=True)])
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    start = time.perf_counter()
    classes = restore(case)["pred"]
    seconds = time.perf_counter() - start
    peak = (memory_mb("VmHWM") - before) * 2**20 / np.prod(setup.shape)
    np.save(folder / f"{way}.npy", classes[0].numpy().astype(np.uint8))
    return {"seconds": seconds, "bytes": peak}


def memory_mb(name: str) -> float:
    """Return this process's resident memory, now (VmRSS) or at its highest (VmHWM), as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def compare(folder: Path, setup: Setup, way: str) -> dict[str, float]:
    """Count voxels whose label is another than by tiles; give the largest difference of their two best logits."""
    ours, theirs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in (WAYS[0], way))
    voxels = np.argwhere(ours != theirs)
    maps = way_back(preprocessed(setup.shape, transforms())["image"])
    logits = np.load(folder / "logits.npy", mmap_mode="r").transpose(0, *(axis + 1 for axis in maps.axes))
    margin = 0.0
    for voxel in voxels[:1000]:
        rows = [weights[index] for weights, index in zip(maps.weights, voxel, strict=True)]
        at = [row.nonzero().flatten().numpy() for row in rows]
        corners = logits[np.ix_(range(setup.classes), *at)].astype(np.float64)
        values = np.einsum("cxyz,x,y,z->c", corners, *(row[i].numpy() for row, i in zip(rows, at, strict=True)))
        low, high = np.sort(values)[-2:]
        margin = max(margin, high - low)
    return {"other_labels": len(voxels), "their_margin": margin}


def run(setup: Setup, ways: Sequence[str], folder: Path) -> dict[str, float | str]:
    """Measure a setup; return its row of the table."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(setup.repeats):
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.restore", "--one", str(folder), json.dumps(setup), way]
            environment = {
                name: value for name, value in os.environ.items() if name not in MALLOC
            }  # keeps freed memory
            environment["OMP_NUM_THREADS"] = str(setup.threads)
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    row = {"labels": setup.source, "classes": setup.classes, "shape": "x".join(map(str, setup.shape))}
    row["threads"] = setup.threads
    for way in WAYS[1:]:
        pairs = zip(found.get(way, ()), found[WAYS[0]], strict=False)
        ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
        row[f"times_faster_than_{way}"] = float(np.median(ratios)) if ratios else "needs too much memory"
    row |= {f"bytes_per_voxel_{way}": max(one["bytes"] for one in found.get(way, [])) for way in ways}
    for way in ways[1:]:
        row |= {f"{name}_{way}": value for name, value in compare(folder, setup, way).items()}
    return row


def main() -> int:
    """Measure each way in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "SETUP", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        folder, setup, way = args.one
        sys.stdout.write(json.dumps(measure(Path(folder), Setup(*json.loads(setup)), way)))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not DATA.is_dir():
        raise SystemExit(f"{DATA}: no such folder; it holds the label maps")
    rows = []
    for setup in SETUPS:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        ways = WAYS if np.prod(setup.shape) * setup.classes * MONAI_BYTES < free else WAYS[:2]
        with tempfile.TemporaryDirectory() as folder:
            write_logits(Path(folder) / "logits.npy", setup)
            rows.append(run(setup, ways, Path(folder)))
        logger.info("%s", pd.DataFrame(rows[-1:]).T.to_string(header=False))
        write_table(pd.DataFrame(rows), RESULTS / "restore.csv", decimals=6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
