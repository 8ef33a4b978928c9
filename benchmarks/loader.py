"""Loading crops for training: `python -m benchmarks.loader`.

Synthetic subjects of UK Biobank's size (four Dixon channels of 224 x 174 x 370 voxels, a label of up to 73 classes) are
loaded from the same NIfTI files by the store, with and without memory maps, by MONAI's `PersistentDataset` and by
MONAI's `Dataset`, which reads and prepares a case each time. All of them run the same transforms and cut one crop of
96 x 96 x 96 voxels per case; "MONAI's crop" is `PersistentDataset` with `RandCropByPosNegLabeld` instead of the list of
places.

Every measurement is a process of its own with one thread, all kinds in turn, several times; the table has medians.
Files are in the page cache, so times are without the disk, which helps those most that read most. `disk_mb_per_crop` is
`read_bytes` of `/proc/self/io` after the pages of the files were dropped, which counts memory maps too; `read_mb` is
`rchar`, what calls of `read` returned, which does not. The first epoch of the store compares checksums.

Memory: 10 and 1,000 subjects, one crop each, whose files are links to those of three. Writes `results/loader.csv` and
`results/loader_memory.csv`.
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
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.data import DataLoader, Dataset, PersistentDataset
from monai.transforms import (
    Compose,
    EnsureTyped,
    LoadImaged,
    RandCropByPosNegLabeld,
    ScaleIntensityRangePercentilesd,
)
from scipy.ndimage import gaussian_filter, zoom

from benchmarks.restore import memory_mb
from scripts.common.files import write_table
from scripts.data.crops import RandCropByPlacesd
from scripts.data.datasets import StoredCaseDataset
from scripts.data.places import ForegroundPlacesd
from tools.label_body import draw_label_map

RESULTS = Path(__file__).parent / "results"
SHAPE, SPACING_MM = (224, 174, 370), (2.232, 2.232, 3.0)
PATCH = (96, 96, 96)
FILES, REPEATS = 3, 2
KEYS = ("image", "label")
CROPS = {
    "store, memory maps": 40,
    "store": 40,
    "PersistentDataset": 8,
    "PersistentDataset, MONAI's crop": 8,
    "Dataset": 2,
}
SUBJECTS = (10, 1000)
logger = logging.getLogger(__name__)


def write_subject(folder: Path, number: int) -> None:
    """Write four channels and a label: organs of constant intensity, a coil's field, and noise of a magnitude image."""
    rng = np.random.default_rng(number)
    small, _ = draw_label_map(rng)
    label = small[np.ix_(*(np.arange(n) * size // n for n, size in zip(SHAPE, small.shape, strict=True)))]
    intensities = rng.uniform(100, 900, (4, 256)).astype(np.float32)
    intensities[:, 0] = 0
    coarse = rng.normal(1, 0.1, (3, 3, 5)).astype(np.float32)
    field = zoom(coarse, [n / size for n, size in zip(SHAPE, coarse.shape, strict=True)], order=1)
    image = np.empty((*SHAPE, 4), np.int16)  # as scripts.prepare_ukbb writes it
    for channel in range(4):
        parts = [25 * gaussian_filter(rng.standard_normal(SHAPE, np.float32), 0.5) for _ in range(2)]
        parts[0] += gaussian_filter(intensities[channel][label], 0.7) * field
        image[..., channel] = np.rint(np.hypot(*parts))
    affine = np.diag([*SPACING_MM, 1.0])
    nib.save(nib.Nifti1Image(image, affine), folder / f"image_{number}.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), folder / f"label_{number}.nii.gz")


def subjects(folder: Path, count: int) -> list[dict[str, str]]:
    """List subjects, each with links of its own to the files."""
    items = []
    for number in range(count):
        item = {key: folder / f"{key}_{number}.nii.gz" for key in KEYS}
        for key, path in item.items():
            if not path.exists():
                path.hardlink_to(folder / f"{key}_{number % FILES}.nii.gz")
        items.append({"case": str(number), **{key: str(path) for key, path in item.items()}})
    return items


def transforms(*, monai_crop: bool = False) -> Compose:
    """Return the transforms of a training: load, normalise each channel, cut a crop."""
    crop = [ForegroundPlacesd(), RandCropByPlacesd(KEYS, spatial_size=PATCH)]
    if monai_crop:
        crop = [RandCropByPosNegLabeld(KEYS, label_key="label", spatial_size=PATCH, num_samples=1, image_key="image")]
    scale = ScaleIntensityRangePercentilesd("image", 0, 99.5, 0, 1, clip=True, channel_wise=True)
    return Compose([LoadImaged(KEYS, ensure_channel_first=True), scale, EnsureTyped(KEYS), *crop])


def make(kind: str, folder: Path, items: Sequence[dict[str, str]]) -> Dataset:
    """Make a dataset of a kind of `CROPS`."""
    steps = transforms(monai_crop="crop" in kind)
    if kind == "Dataset":
        return Dataset(items, steps)
    if kind.startswith("Persistent"):
        return PersistentDataset(items, steps, cache_dir=folder / kind)
    return StoredCaseDataset(items, steps, cache_dir=folder / "store", mmap="maps" in kind)


def read_counts() -> tuple[int, int]:
    """Return what this process has read: by calls of `read`, and from the disk."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]), int(lines["read_bytes"])


def drop_pages(folder: Path) -> None:
    """Drop the pages of all files from the page cache."""
    for path in folder.rglob("*.*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(dataset: Dataset, count: int) -> tuple[float, float]:
    """Take crops, and return the seconds and the processor's seconds of one."""
    start, processor = time.perf_counter(), time.process_time()
    for number in range(count):
        dataset[number % len(dataset)]
    return (time.perf_counter() - start) / count, (time.process_time() - processor) / count


def measure(folder: Path, kind: str) -> dict[str, float]:
    """Measure a kind in this process; its cases are prepared."""
    torch.set_num_threads(1)
    dataset = make(kind, folder, subjects(folder, FILES))
    first, _ = timed(dataset, FILES)
    seconds, processor = timed(dataset, CROPS[kind])
    peak = memory_mb("VmHWM")
    drop_pages(folder)
    before = read_counts()
    timed(dataset, FILES)
    read, disk = (np.subtract(read_counts(), before) / FILES / 2**20).tolist()
    return {
        "crops_per_s_first_epoch": 1 / first,
        "crops_per_s": 1 / seconds,
        "crops_per_core_s": 1 / processor,
        "peak_mb": peak,
        "read_mb_per_crop": read,
        "disk_mb_per_crop": disk,
    }


def measure_memory(folder: Path, count: int) -> dict[str, float]:
    """Take one crop of each of many subjects of the store in this process and, at the end, with two workers."""
    torch.set_num_threads(1)
    items = subjects(folder, count)
    dataset = StoredCaseDataset(items, transforms(), cache_dir=folder / "store")
    for number, item in enumerate(items):
        path, source = dataset.file_of(item), dataset.file_of(items[number % FILES])
        for file in () if path.is_file() else sorted(source.parent.glob(f"{source.stem}.*")):
            path.with_name(file.name.replace(source.stem, path.stem)).hardlink_to(file)
    start = time.perf_counter()
    timed(dataset, count)
    seconds = time.perf_counter() - start
    own = memory_mb("VmRSS")
    start = time.perf_counter()
    crops = sum(len(batch["image"]) for batch in DataLoader(dataset, batch_size=2, num_workers=2))
    return {
        "memory_mb": own,
        "peak_mb": memory_mb("VmHWM"),
        "crops_per_s_first_epoch": count / seconds,
        "crops_per_s_two_workers": crops / (time.perf_counter() - start),
    }


def in_process(*arguments: object) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader", "--one", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(folder: Path) -> pd.DataFrame:
    """Prepare the subjects, and measure every kind in turn."""
    for number in range(FILES):
        write_subject(folder, number)
    for kind in CROPS:
        if kind != "Dataset":
            timed(make(kind, folder, subjects(folder, FILES)), FILES)
    rows = [{"dataset": kind, **in_process(folder, kind)} for _ in range(REPEATS) for kind in CROPS]
    table = pd.DataFrame(rows).groupby("dataset", sort=False).median().reset_index()
    reference = table.loc[table["dataset"] == "PersistentDataset", "crops_per_core_s"].item()
    table["times_persistent"] = table["crops_per_core_s"] / reference
    folders = {"store": "store", "store, memory maps": "store", "Dataset": "none"}
    paths = [sorted((folder / folders.get(kind, kind)).rglob("*.*")) for kind in table["dataset"]]
    table["case_mb"] = [sum(path.stat().st_size for path in found) / FILES / 2**20 for found in paths]
    logger.info("a case has %.0f MB as float32", 5 * 4 * np.prod(SHAPE) / 2**20)
    return table


def measure_subjects(folder: Path) -> pd.DataFrame:
    """Measure the store with few and many subjects."""
    return pd.DataFrame([{"subjects": count, **in_process(folder, "memory", count)} for count in SUBJECTS])


def main() -> int:
    """Measure and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        folder, kind, *rest = args.one
        found = measure_memory(Path(folder), int(rest[0])) if rest else measure(Path(folder), kind)
        sys.stdout.write(json.dumps(found))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        for name, measured in {"loader": measure_all, "loader_memory": measure_subjects}.items():
            rows = measured(Path(folder))
            logger.info("%s\n%s", name, rows.round(2).to_string(index=False))
            write_table(rows, RESULTS / f"{name}.csv", decimals=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
