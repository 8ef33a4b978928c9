"""Size and response times of the QC report: `python -m benchmarks.solf_report`.

Writes the report of simulated cohorts with 71 labels a case, each size in a process of its own, and times what a user
does in headless Chromium. Each case has the same label map, a phantom of UK Biobank's size.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks.restore import memory_mb
from benchmarks.solf_speed import ukb_phantom
from scripts.common.files import atomic_path
from scripts.common.organs import ORGANS
from scripts.solf.report.review import ReviewOptions
from scripts.solf.report.write import write_report
from scripts.solf.transforms import LoadLabelMapd

RESULTS = Path(__file__).parent / "results"
COHORTS = (500, 5000, 50_000)
LABELS = [label for label in ORGANS if label != 72]
FEATURES = ("normalized_volume", "sphericity", "eccentricity")
CASES_PER_CHUNK = 500
BOUND = norm.ppf(0.98)
WRONG = 0.01  # of the labels lie three times as far from the mean
ROUNDS = 5
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1400,1000")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
logger = logging.getLogger(__name__)


def organ_scales() -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard deviations of each feature of each organ, (L, F)."""
    rng = np.random.default_rng(0)
    shape = (len(LABELS), 1)
    means = np.hstack(
        [10 ** rng.uniform(-4, -1.5, shape), rng.uniform(0.3, 0.75, shape), rng.uniform(0.6, 0.95, shape)]
    )
    return means, means * np.array([0.15, 0.06, 0.02])


def thresholds(subjects: int) -> dict[str, object]:
    """Return what thresholds.json holds of the simulated cohort."""
    means, deviations = organ_scales()
    organs: dict[str, dict[str, object]] = {}
    for row, label in enumerate(LABELS):
        organs[str(label)] = {"organ": ORGANS[label], "subjects": subjects}
        for column, name in enumerate(FEATURES):
            mean, reach = means[row, column], BOUND * deviations[row, column]
            organs[str(label)][name] = {"low": mean - reach, "median": mean, "high": mean + reach}
    about = {"rule": "percentile", "epsilon_percent": 2.0, "subjects": subjects}
    return {**about, "features": list(FEATURES), "votes": 2, "organs": organs}


def decisions(subjects: int) -> Iterator[pd.DataFrame]:
    """Yield the simulated table of decisions, CASES_PER_CHUNK cases at a time."""
    for first in range(0, subjects, CASES_PER_CHUNK):
        yield _chunk(first, min(CASES_PER_CHUNK, subjects - first))


def _chunk(first: int, cases: int) -> pd.DataFrame:
    rng, (means, deviations) = np.random.default_rng(first + 1), organ_scales()
    z = rng.normal(size=(cases, len(LABELS), len(FEATURES)))
    z[rng.random(z.shape[:2]) < WRONG] *= 3
    outside = np.abs(z) > BOUND
    values, votes = (means + z * deviations).reshape(-1, len(FEATURES)), outside.sum(axis=2).ravel()
    case = np.repeat([f"subject_{n:06d}" for n in range(first, first + cases)], len(LABELS))
    columns = {"case": case, "label": np.tile(LABELS, cases), "organ": np.tile([ORGANS[n] for n in LABELS], cases)}
    for column, name in enumerate(FEATURES):
        columns |= {name: values[:, column], f"{name}_percentile": 100 * norm.cdf(z[..., column]).ravel()}
    rejected = votes >= 2
    reasons = np.full(len(case), "", dtype=object)
    for row in np.flatnonzero(rejected):
        found = np.flatnonzero(outside.reshape(-1, len(FEATURES))[row])
        reasons[row] = "; ".join(f"{FEATURES[n]} {values[row, n]:.4g} is outside its range" for n in found)
    return pd.DataFrame(
        {**columns, "votes": votes, "decision": np.where(rejected, "reject", "keep"), "reason": reasons}
    )


def write(folder: Path, subjects: int) -> dict[str, float]:
    """Write a report; return seconds, the part of them that the simulation took, and the peak of memory."""
    label_map = folder / "phantom.nii.gz"
    ukb_phantom(label_map, np.random.default_rng(0))
    sources = {f"subject_{n:06d}": str(label_map) for n in range(subjects)}
    reader = LoadLabelMapd("image")
    before = memory_mb("VmRSS")
    start = time.perf_counter()
    for _ in decisions(subjects):
        pass
    simulated = time.perf_counter() - start
    start = time.perf_counter()
    given = {"decisions": decisions(subjects), "thresholds": thresholds(subjects), "sources": sources, "failures": {}}
    write_report(folder, **given, review=ReviewOptions(), load=lambda path: reader({"image": path})["image"])
    seconds = time.perf_counter() - start
    return {"write_s": seconds - simulated, "simulate_s": simulated, "peak_mb": memory_mb("VmHWM") - before}


def sizes(report: Path) -> dict[str, float]:
    """Return the folder's size and the files that opening a page loads, in MB."""
    parts = {
        "folder_mb": "**/*",
        "slices_mb": "data/slices-*.js",
        "label_pages_mb": "data/labels-*.js",
        "rejected_mb": "data/rejected.js",
        "case_index_mb": "data/cases.js",
    }
    found = {name: sum(file.stat().st_size for file in report.glob(p) if file.is_file()) for name, p in parts.items()}
    found["files"] = 1e6 * sum(file.is_file() for file in report.rglob("*"))
    return {name: size / 1e6 for name, size in found.items()}


def browse(report: Path) -> dict[str, float]:
    """Time what a user does, in Chromium; milliseconds from the action to the drawn rows, medians of ROUNDS."""
    options = ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, *QUIET, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = shutil.which("chromedriver")
        browser = Chrome(options=options, service=ChromeService(driver) if driver else None)
        try:
            return _browse(browser, report)
        finally:
            browser.quit()


def _browse(browser: Chrome, report: Path) -> dict[str, float]:
    browser.set_script_timeout(60)
    start = time.perf_counter()
    browser.get((report / "index.html").as_uri())
    WebDriverWait(browser, 60).until(lambda b: b.execute_script("return !!document.querySelector('#organ-table td')"))
    first = {"first_page_ms": 1000 * (time.perf_counter() - start)}
    actions = {
        "open_cases_ms": "await qc.views.openCases()",
        "sort_cases_ms": "qc.views.caseTable.sort([0, 1, 2, 5, 6][round])",
        "filter_cases_ms": "text.value = ['subject_0001', '99', '49', '_00', ''][round]; input(text)",
        "next_page_ms": "qc.views.caseTable.turn(round)",
        "open_case_ms": "await qc.views.openCase((1 + 977 * round) % qc.views.overview.totals.cases)",
        "open_rejected_ms": "await qc.views.openRejected()",
        "filter_rejected_ms": "await qc.views.openRejected(['2', '5', '7', '30', '61'][round])",
        "open_review_ms": "await qc.views.openReview()",
        "next_label_ms": "await qc.review.go(round + 1)",
    }
    for name, action in actions.items():
        rounds = range(1 if name.startswith("open") and name != "open_case_ms" else ROUNDS)
        first[name] = statistics.median(browser.execute_async_script(_timed(action), n) for n in rounds)
    return first


def _timed(action: str) -> str:
    """Return a script that does something and returns the milliseconds until it is drawn."""
    return f"""
        const [round, done] = arguments, text = document.getElementById("case-text");
        const input = (node) => node.dispatchEvent(new Event("input"));
        document.querySelectorAll("main > section").forEach((section) => {{ section.hidden = false; }});
        const start = performance.now();
        (async () => {{ {action}; }})().then(() => requestAnimationFrame(() =>
            setTimeout(() => done(performance.now() - start))));"""


def main() -> int:
    """Measure each cohort in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=COHORTS, help="sizes of the cohorts")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "CASES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(write(Path(args.one[0]), int(args.one[1]))))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = []
    for cases in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.solf_report", "--one", folder, str(cases)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            report = Path(folder) / "qc"
            rows.append({"cases": cases, **json.loads(done.stdout), **sizes(report), **browse(report)})
    table = pd.DataFrame(rows).set_index("cases").T.map(lambda value: f"{value:.4g}")
    logger.info("%s", table.to_string())
    packages = ", ".join(f"{name} {version(name)}" for name in ("selenium", "pillow", "pandas", "numpy"))
    logger.info("Python %s, %s", platform.python_version(), packages)
    with atomic_path(RESULTS / "solf_report.csv") as temporary:
        table.to_csv(temporary, index_label="measure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
