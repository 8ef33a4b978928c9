"""Speed of the shape features: `python -m benchmarks.solf_speed`.

Side by side on one core, in one run: one pass for all labels (ours), SimpleITK's LabelShapeStatistics, the same count
of cells in NumPy, the plain way, one label after another over the whole volume, and the steps of the published code,
which also counts components. Then reading, measuring and deciding as the bundle does, and cleaning a case against what
it cannot do without: unpacking, measuring and packing, by the same libraries. The volumes are the brain
parcellation of `../shared/data`, if that folder exists, and a phantom of UK Biobank's size.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from monai.transforms import Compose
from scipy import ndimage
from skimage.measure import marching_cubes, mesh_surface_area
from zlib_ng import gzip_ng

from benchmarks.restore import memory_mb
from scripts.common.files import atomic_path
from scripts.io.nifti import StoredVolume, read_nifti
from scripts.solf.features import label_shape_features
from scripts.solf.filter import LabelFilter, clean_case
from scripts.solf.fitting import fit_thresholds
from scripts.solf.marching_cubes import CORNERS
from scripts.solf.tables import cohort_table
from scripts.solf.transforms import LoadLabelMapd, SaveCleanedd, ShapeFeaturesd

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
BRAIN = ROOT.parent / "shared" / "data" / "brain_parcellation" / "label.nii.gz"
UKB_SHAPE, UKB_SPACING_MM, UKB_LABELS = (224, 168, 363), (2.232, 2.232, 3.0), 71
UKB_PEOPLE = 51_761
WORKER_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
PACKAGES = ("zlib-ng", "numba", "numpy", "scikit-image", "SimpleITK", "nibabel", "pandas")
ROUNDS = 7
logger = logging.getLogger(__name__)


def ukb_phantom(path: Path, rng: np.random.Generator) -> None:
    """Write a body that organs of many sizes fill, 71 labels in the grid of UK Biobank's neck-to-knee MRI."""
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in UKB_SHAPE)]
    label = np.zeros(UKB_SHAPE, dtype=np.uint8)
    label[((x / 0.85) ** 2 + (y / 0.8) ** 2 + 0 * z) < 1] = UKB_LABELS
    for organ in range(1, UKB_LABELS):
        centre = rng.uniform((-0.6, -0.5, -0.95), (0.6, 0.5, 0.95))
        a, b, c = rng.uniform(0.04, 0.22, 3)
        bumps = 1 + 0.15 * np.sin(25 * x + organ) * np.sin(25 * y) * np.sin(40 * z)
        ellipsoid = ((x - centre[0]) / a) ** 2 + ((y - centre[1]) / b) ** 2 + ((z - centre[2]) / c) ** 2
        label[(ellipsoid < bumps) & (label > 0)] = organ
    nib.save(nib.Nifti1Image(label, np.diag([*UKB_SPACING_MM, 1.0])), path)


def plain_features(volume: StoredVolume, label: int) -> tuple[float, float, np.ndarray]:
    """Measure one label as it is commonly written: area, volume and eigenvalues from a mask of the whole volume."""
    mask = volume.stored == label
    spacing_mm = nib.affines.voxel_sizes(volume.affine)
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1), 0.5, spacing=spacing_mm, method="lorensen")
    eigenvalues_mm2 = np.linalg.eigvalsh(np.cov((np.argwhere(mask) * spacing_mm).T))
    return mesh_surface_area(vertices, faces), mask.sum() * np.prod(spacing_mm), eigenvalues_mm2


def published_features(volume: StoredVolume, label: int) -> tuple[float, float, list[int], np.ndarray]:
    """Measure one label in the steps of the published code: components and their sizes, then mesh and bounding box."""
    mask = (volume.stored == label).astype(np.uint8)
    spacing_mm = nib.affines.voxel_sizes(volume.affine)
    components, count = ndimage.label(mask)
    sizes = [int(np.sum(components == component)) for component in range(1, count + 1)]
    vertices, faces, _, _ = marching_cubes(mask.astype(float), level=0.5, spacing=spacing_mm)
    place = np.argwhere(mask)
    box = np.stack([place.mean(axis=0), place.min(axis=0), place.max(axis=0)])
    return mesh_surface_area(vertices, faces), np.sum(mask) * np.prod(spacing_mm), sizes, box


def bundle_ways(path: Path, labels: np.ndarray, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what reads, measures and judges a label map, and what also cleans it, by the bundle's code."""
    table = folder / "table.json"
    table.write_text(json.dumps({str(label): f"label {label}" for label in labels}))
    measure = Compose([LoadLabelMapd("image"), ShapeFeaturesd("image", label_table=table)])
    network = LabelFilter(label_table=table)
    cohort = cohort_table([("only", measure({"image": path})["features"].numpy())], network.organs)
    many = pd.concat([cohort] * 50, ignore_index=True)
    network.thresholds = fit_thresholds(many, organs=network.organs)
    network.high[: len(labels) // 50 + 1] = 0  # one label in fifty is rejected
    options = {"transform": measure, "network": network, "postprocessing": SaveCleanedd("pred", output_dir=folder)}
    return {
        "all of it": lambda: network.decide(measure({"image": path})["features"].numpy()),
        "cleaning": lambda: clean_case({"image": str(path), "case": "case"}, **options),
    }


def numpy_cells(volume: np.ndarray) -> np.ndarray:
    """Count the cells of all labels, (labels, 256), in NumPy, slice by slice: the alternative to numba."""
    n = int(volume.max()) + 1
    cells = np.zeros(n * 256, dtype=np.int64)
    for x in range(-1, len(volume)):
        pair = np.zeros((2, volume.shape[1] + 2, volume.shape[2] + 2), dtype=volume.dtype)
        pair[0 if x >= 0 else 1 :, 1:-1, 1:-1][: len(volume) - max(x, 0)] = volume[max(x, 0) : x + 2]
        corners = np.stack([pair[i, j : pair.shape[1] - 1 + j, k : pair.shape[2] - 1 + k] for i, j, k in CORNERS])
        mixed = (corners != corners[0]).any(0)
        cells[255::256] += np.bincount(corners[0][~mixed], minlength=n)
        corners, seen = corners[:, mixed], np.zeros(int(mixed.sum()), dtype=np.uint8)
        for corner in range(8):
            same = np.packbits(corners == corners[corner], axis=0, bitorder="little")[0]
            new = seen >> corner & 1 == 0
            cells += np.bincount(corners[corner][new].astype(np.int64) * 256 + same[new], minlength=n * 256)
            seen |= same
    return cells.reshape(n, 256)


def itk_statistics(image: sitk.Image, *, surface: bool) -> None:
    """Run SimpleITK's label statistics, whose surface area (its default) follows Crofton and not the mesh."""
    statistics_filter = sitk.LabelShapeStatisticsImageFilter()
    statistics_filter.SetComputePerimeter(surface)
    statistics_filter.Execute(image)


def seconds(function: Callable[[], object]) -> float:
    """Return the processor time of one call, which other programs change less than that of the clock."""
    start = time.process_time()
    function()
    return time.process_time() - start


def peak_mb(function: Callable[[], object]) -> float:
    """Return how far resident memory rises above where it was, as Linux counts it."""
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    function()
    return max(0, memory_mb("VmHWM") - before)


def measure(path: Path, *, plain_labels: int, folder: Path) -> dict[str, float]:
    """Time every way on one file, in rounds that take turns, so that a busy machine slows all of them.

    Args:
        path: a .nii.gz label map.
        plain_labels: how many labels the plain and the published way measure; their times are scaled to all.
        folder: for temporary files.

    Returns:
        Medians of the rounds in seconds by way, `labels`, `voxels`, and `memory`, in multiples of the label map.
    """
    volume = read_nifti(path)
    image = sitk.GetImageFromArray(volume.stored.T)
    image.SetSpacing([float(step) for step in nib.affines.voxel_sizes(volume.affine)])
    labels = label_shape_features(volume.stored, volume.affine).label.to_numpy()
    packed = path.read_bytes()
    unpacked = gzip_ng.decompress(packed)
    ways = {
        "read": lambda: read_nifti(path),
        "ours": lambda: label_shape_features(volume.stored, volume.affine),
        "gunzip": lambda: gzip_ng.decompress(packed),
        "gzip": lambda: gzip_ng.compress(unpacked, compresslevel=SaveCleanedd.gzip_level),
        **bundle_ways(path, labels, folder),
        "SimpleITK": lambda: itk_statistics(image, surface=True),
        "SimpleITK, no surface": lambda: itk_statistics(image, surface=False),
        "NumPy, cells alone": lambda: numpy_cells(volume.stored.T),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(seconds(way))
    some = labels[np.linspace(0, len(labels) - 1, min(plain_labels, len(labels))).astype(int)]
    found = {name: statistics.median(values) for name, values in times.items()}
    for name, way in {"plain": plain_features, "published": published_features}.items():
        found[name] = seconds(lambda way=way: [way(volume, label) for label in some]) * len(labels) / len(some)
    found["memory"] = 1 + peak_mb(ways["ours"]) * 2**20 / volume.stored.nbytes
    return found | {"labels": len(labels), "voxels": volume.stored.size, "plain labels": len(some)}


def first_call(cache: Path) -> float:
    """Return the seconds of the first call in a fresh process, which compiles unless `cache` holds the result."""
    code = (
        "import time, numpy as np\nfrom scripts.solf.features import label_shape_features as measure\n"
        "start = time.perf_counter()\nmeasure(np.ones((4, 4, 4), np.uint8), np.eye(4))\n"
        "print(time.perf_counter() - start)"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    return float(done.stdout)


def rows_of(name: str, found: dict[str, float]) -> list[dict[str, object]]:
    """Turn the times of one volume into ratios and hold them against their targets."""
    allowed = 3 * found["read"] + 0.15
    needed = found["gunzip"] + found["ours"] + found["gzip"]
    checks = [
        ("plain way / ours", found["plain"] / found["ours"], ">= 500"),
        ("published steps / ours", found["published"] / found["ours"], ""),
        ("SimpleITK / ours", found["SimpleITK"] / found["ours"], ">= 2"),
        ("SimpleITK without surface / ours", found["SimpleITK, no surface"] / found["ours"], ""),
        ("NumPy, cells alone / ours", found["NumPy, cells alone"] / found["ours"], ""),
        ("reading, measuring and deciding / (3 x reading + 0.15 s)", found["all of it"] / allowed, "<= 1"),
        ("memory / label map, the map included", found["memory"], "<= 4"),
        ("cleaning / (gunzip + features + gzip)", found["cleaning"] / needed, "<= 2"),
        (f"cleaning {UKB_PEOPLE} such maps, CPU hours here", found["cleaning"] * UKB_PEOPLE / 3600, ""),
    ]
    return [{"volume": name, "measure": what, "value": value, "target": target} for what, value, target in checks]


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """Add whether each target is met."""

    def verdict(row: pd.Series) -> str:
        if not row.target:
            return ""
        sign, limit = row.target.split()
        return "yes" if (row.value >= float(limit) if sign == ">=" else row.value <= float(limit)) else "no"

    return table.assign(met=table.apply(verdict, axis=1))


def write(table: pd.DataFrame, notes: list[str]) -> None:
    """Write the table as CSV, and as Markdown with the notes."""
    with atomic_path(RESULTS / "solf_speed.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.3g", lineterminator="\n")
    texts = table.astype(object).assign(value=[f"{value:.3g}" for value in table.value])
    lines = [" | ".join(row) for row in [list(table.columns), ["---"] * len(table.columns), *texts.to_numpy()]]
    body = "\n".join(f"| {line} |" for line in lines)
    with atomic_path(RESULTS / "solf_speed.md") as temporary:
        head = "# Speed of the shape features, on one core\n\n`python -m benchmarks.solf_speed`\n\n"
        temporary.write_text(head + body + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n", encoding="utf-8")


def notes_of(found: dict[str, dict[str, float]], compiling: float) -> list[str]:
    """Describe the volumes, the first call and the versions.

    Args:
        found: of `measure`, by volume.
        compiling: seconds of the first call.
    """
    notes = [
        f"{name}: {times['voxels'] / 1e6:.1f} M voxels, {times['labels']} labels; "
        f"the plain and the published way were timed on {times['plain labels']} of them and scaled to all."
        for name, times in found.items()
    ]
    ratio = compiling / list(found.values())[-1]["ours"]
    notes.append(f"The first call ever compiles; it takes {ratio:.0f} times as long as later ones.")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [*notes, f"Python {platform.python_version()}, {versions}"]


def main() -> int:
    """Measure both volumes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain-labels", type=int, default=8, help="labels for the plain way (default: 8)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not WORKER_ENVIRONMENT.items() <= os.environ.items():  # read when a process starts
        command = [sys.executable, *sys.orig_argv[1:]]
        return subprocess.run(command, env=os.environ | WORKER_ENVIRONMENT, check=False).returncode
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"UK Biobank phantom": Path(folder) / "ukb.nii.gz"}
        ukb_phantom(paths["UK Biobank phantom"], np.random.default_rng(0))
        if BRAIN.is_file():
            paths["brain parcellation"] = BRAIN
        else:
            logger.info("%s is absent: only the phantom is measured", BRAIN)
        compiling, cached = (first_call(Path(folder) / "cache") for _ in range(2))
        options = {"plain_labels": args.plain_labels, "folder": Path(folder)}
        found = {name: measure(path, **options) for name, path in paths.items()}
    for name, times in found.items():
        logger.info("%s: %s", name, ", ".join(f"{way} {value:.3g}" for way, value in times.items()))
    logger.info("first call: %.1f s with compiling, %.2f s from numba's cache", compiling, cached)
    table = judged(pd.DataFrame([row for name, times in found.items() for row in rows_of(name, times)]))
    logger.info("%s", table.to_string(index=False, float_format="%.3g"))
    write(table, notes_of(found, compiling))
    return 0


if __name__ == "__main__":
    sys.exit(main())
