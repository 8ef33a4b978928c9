"""Throughput and memory for a cohort of 51,761 subjects: `python -m benchmarks.solf_scale`.

Cases per second, side by side in rounds that take turns: a plain loop in one process, the journal around it, one and
all cores of this machine, and two workers behind a Dask scheduler; on phantom label maps as they are and blown up to
the size of UK Biobank's, and, for the overhead of a case, on a function that does nothing. `machine_load` shows whether
the machine was free: if it exceeds the number of cores, processor time (`cpu_ms_per_case`, of all processes) is more
reliable than wall time. Then seconds and memory of fitting thresholds to
simulated tables of 100 to 51,761 subjects with 71 organs each, as they are read from `features.parquet`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
from dask.system import CPU_COUNT
from distributed import Client
from matplotlib.figure import Figure
from monai.transforms import Compose
from tqdm import tqdm

from benchmarks.restore import memory_mb
from scripts.cohort.attempts import CaseResult, attempt
from scripts.cohort.engine import local_client, remote_client, run_on_dask
from scripts.cohort.journal import Case, Journal
from scripts.common.files import atomic_path, write_table
from scripts.common.organs import ORGANS
from scripts.solf.features import compile_features
from scripts.solf.fitting import fit_thresholds
from scripts.solf.measuring import measure_case
from scripts.solf.thresholds import FEATURES, INPUTS
from scripts.solf.training import read_features
from scripts.solf.transforms import LoadLabelMapd, ShapeFeaturesd
from tools.label_cohort import make_cohort

RESULTS = Path(__file__).parent / "results"
MAPS, ROUNDS = 8, 5
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
}
BLOW_UP, LARGE = (3, 3, 2), "13 M voxels"  # UK Biobank's neck-to-knee maps have as many
SUBJECTS = (100, 316, 1000, 3162, 10_000, 31_623, 51_761)
LABELS = tuple(ORGANS)[:71]
TARGETS = {"fit_s": 15, "peak_mb": 2000}
PLAIN = "plain loop"
logger = logging.getLogger(__name__)

CaseFunction = Callable[[Case], bytes]
Way = Callable[[CaseFunction, Sequence[Case], Journal], None]


def nothing(case: Mapping[str, str]) -> bytes:
    """Return as much as a case of 71 organs does, at once."""
    return bytes(14_000) + case["case"].encode()


def plain_loop(function: CaseFunction, cases: Sequence[Case], _: Journal) -> None:
    """Call the function on each case in a loop, the baseline."""
    for case in cases:
        function(case)


def in_this_process(function: CaseFunction, cases: Sequence[Case], journal: Journal) -> None:
    """Run the cases as `workers=0` does."""
    for case in cases:
        _keep(journal, case, attempt(function, case))


def on_dask(function: CaseFunction, cases: Sequence[Case], journal: Journal, *, client: Client, remote: bool) -> None:
    """Run the cases as `workers` and `scheduler` do, on workers that are already started."""
    record = partial(_keep, journal)
    run_on_dask(client, function, cases, remote=remote, record=record, tick=journal.commit_due)


def _keep(journal: Journal, case: Case, outcome: CaseResult) -> None:
    if outcome.failure:
        raise RuntimeError(f"{case['case']}: {outcome.failure}")
    journal.put(case, outcome.payload)


@contextmanager
def scheduler_of_two(folder: Path) -> Iterator[str]:
    """Start `dask scheduler` and two `dask worker`, and yield the address."""
    file = folder / "scheduler.json"
    with ExitStack() as stack:

        def start(what: str, *arguments: str) -> None:
            command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments, "--no-dashboard"]
            silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(command, cwd=folder, env=os.environ | WORKER_ENVIRONMENT, **silent)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        while not (file.exists() and file.read_text().rstrip().endswith("}")):
            time.sleep(0.1)
        for _ in range(2):
            start("worker", "--scheduler-file", str(file), "--nthreads", "1", "--local-directory", str(folder))
        yield json.loads(file.read_text())["address"]


def blown_up(path: Path) -> str:
    """Write a label map of finer voxels beside `path`, and return its path."""
    image = nib.load(path)
    voxels = np.kron(np.asarray(image.dataobj), np.ones(BLOW_UP, np.uint8))
    finer = image.affine @ np.diag([*(1 / np.array(BLOW_UP)), 1])
    nib.save(nib.Nifti1Image(voxels, finer), path.with_name(f"large-{path.name}"))
    return str(path.with_name(f"large-{path.name}"))


def throughput(rounds: int, count: int) -> pd.DataFrame:
    """Measure every way in turn, with workers started and code loaded beforehand."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        paths = make_cohort(folder, subjects=MAPS).labels
        cases = [{"case": f"c{n}", "image": str(paths[n % MAPS])} for n in range(count)]
        files = [blown_up(path) for path in paths]
        large = [{"case": f"c{n}", "image": files[n % MAPS]} for n in range(count // 4)]
        compile_features()
        measure = partial(measure_case, transform=Compose([LoadLabelMapd("image"), ShapeFeaturesd("image")]))
        address = stack.enter_context(scheduler_of_two(folder))
        opened = {workers: stack.enter_context(local_client(workers)) for workers in {1, CPU_COUNT}}
        far = stack.enter_context(remote_client(address))
        far.wait_for_workers(2)
        ways: dict[str, Way] = {PLAIN: plain_loop, "journal, this process": in_this_process}
        for workers, client in opened.items():
            ways[f"{workers} local worker{'s' * (workers > 1)}"] = partial(on_dask, client=client, remote=False)
        ways["Dask scheduler, 2 workers"] = partial(on_dask, client=far, remote=True)
        work = {LARGE: (measure, large), "0.7 M voxels": (measure, cases), "nothing": (nothing, cases)}
        pairs = [(kind, way) for kind in work for way in ways]
        times: dict[tuple[str, str], list[tuple[float, float]]] = {pair: [] for pair in pairs}
        turns = [pair for n in range(rounds + 1) for pair in (pairs if n % 2 else pairs[::-1])]
        for number, (kind, way) in enumerate(tqdm(turns, unit="turn")):
            with Journal(folder / f"{number}.sqlite", settings="") as journal:
                start, cpu = time.perf_counter(), _cpu_seconds()
                ways[way](*work[kind], journal)
                times[kind, way].append((time.perf_counter() - start, _cpu_seconds() - cpu))
    counts = {kind: len(items) for kind, (_, items) in work.items()}
    return _throughput_table({turn: found[1:] for turn, found in times.items()}, counts)


def _cpu_seconds() -> float:
    """Return the processor time of this process and all its children, which other programs hardly change."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True)))


def _throughput_table(
    times: dict[tuple[str, str], list[tuple[float, float]]], counts: Mapping[str, int]
) -> pd.DataFrame:
    """Compare the fastest rounds, which other programs disturb least."""
    rows = []
    for (kind, way), found in times.items():
        seconds, cpu_seconds = zip(*found, strict=True)
        count = counts[kind]
        row = {"case": kind, "way": way, "cases_per_second": count / min(seconds)}
        row["over_plain_loop"] = min(times[kind, PLAIN])[0] / min(seconds)
        row |= {"ms_per_case": 1000 * min(seconds) / count, "cpu_ms_per_case": 1000 * min(cpu_seconds) / count}
        rows.append(row | {"slowest_over_fastest": max(seconds) / min(seconds)})
    return pd.DataFrame(rows).assign(machine_load=os.getloadavg()[2])


def fit_table() -> pd.DataFrame:
    """Fit to simulated cohorts of many sizes, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for subjects in tqdm(SUBJECTS, unit="size"):
            path = str(Path(folder) / "features.parquet")
            simulate(subjects, path)
            command = [sys.executable, "-m", "benchmarks.solf_scale", "--fit", path]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"subjects": subjects, "labels": subjects * len(LABELS), **found})
    met = [f"{name} below {most}: {rows[-1][name] < most}" for name, most in TARGETS.items()]
    logger.info("%d subjects: %s", SUBJECTS[-1], ", ".join(met))
    return pd.DataFrame(rows)


def simulate(subjects: int, path: str) -> None:
    """Write features of a cohort, each around an organ's own mean, as the bundle writes them."""
    rng, rows = np.random.default_rng(0), subjects * len(LABELS)
    names = [name for name in INPUTS if name not in ("case", "label")]
    means = rng.uniform(0.2, 0.8, (len(LABELS), len(names)))
    values = {}
    for column, name in enumerate(names):
        drawn = rng.normal(np.tile(means[:, column], subjects), 0.05)
        values[name] = rng.integers(1, 4, rows) if name == "components" else drawn
    cases = np.repeat([f"case{n:06d}" for n in range(subjects)], len(LABELS))
    pd.DataFrame({"case": cases, "label": np.tile(LABELS, subjects), **values}).to_parquet(path)


def fit(path: str) -> dict[str, float]:
    """Read a table and fit; return seconds and the process's peak of memory."""
    before_mb, start = memory_mb("VmRSS"), time.perf_counter()
    table = read_features(path)
    read = time.perf_counter()
    fit_thresholds(table, organs=ORGANS, rule="deciles", features=FEATURES)
    done = time.perf_counter()
    found = {"read_s": read - start, "fit_s": done - read}
    return found | {"imports_mb": before_mb, "peak_mb": memory_mb("VmHWM")}


def draw(speed: pd.DataFrame, fit: pd.DataFrame, path: Path) -> None:
    """Draw the speed on label maps, and time and memory of fitting."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    if len(speed):
        maps = speed[speed["case"] == LARGE]
        bars = left.barh(maps["way"], maps["over_plain_loop"])
        left.bar_label(bars, fmt="%.2f", padding=3)
        left.invert_yaxis()
        left.set_xlabel(f"cases of {LARGE} per second, plain loop = 1 ({CPU_COUNT} cores)")
    else:
        left.remove()
    right.loglog(fit["subjects"], fit["fit_s"], "o-", label="fitting (s)")
    right.loglog(fit["subjects"], fit["read_s"], "s--", label="reading the table (s)")
    right.loglog(fit["subjects"], fit["peak_mb"] / 1000, "^-", label="peak memory of the process (GB)")
    right.set_xlabel("subjects, 71 organs each")
    right.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main() -> int:
    """Measure both parts and write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--cases", type=int, default=100, help="in each turn (default: 100)")
    parser.add_argument("--part", choices=("speed", "fit", "both"), default="both", help="default: both")
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        sys.stdout.write(json.dumps(fit(args.fit)))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files = {part: RESULTS / f"solf_scale_{part}.csv" for part in ("speed", "fit")}
    parts = {"speed": partial(throughput, args.rounds, args.cases), "fit": fit_table}
    for part, measure in parts.items():
        if args.part in (part, "both"):
            table = measure()
            logger.info("\n%s", table.to_string(index=False))
            write_table(table, files[part], decimals=3)
    found = {part: pd.read_csv(file) if file.exists() else pd.DataFrame() for part, file in files.items()}
    draw(found["speed"], found["fit"], RESULTS / "solf_scale.png")
    packages = ("distributed", "numba", "numpy", "pandas")
    logger.info("Python %s, %s", platform.python_version(), ", ".join(f"{name} {version(name)}" for name in packages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
