"""Measure whether adapting the input helps: `python -m benchmarks.etta_input [--part development|unseen|time]`.

The method is chosen on the development images: the cases and shifts of `benchmarks.etta_shift`. Then it is judged once
on shifts that it was not made for, on other phantoms and deformations. Each case is tested clean and under each shift,
at one of three strengths in turn. Writes `results/etta_input_*.csv` and the picture of the bundle's page.
"""

from __future__ import annotations

import argparse
import logging
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.etta.cost import in_a_process, inferer
from benchmarks.etta.networks import RECIPES, ROOT, Case, cases, network, normalize, read, spectrum, trained
from benchmarks.etta.shifts import SHIFTS
from benchmarks.etta.unseen import UNSEEN, Scan
from benchmarks.etta_shift import NETWORKS, RESULTS, mean_dice
from scripts.common.files import atomic_path, write_table
from scripts.etta.inferer import ETTAInferer
from scripts.etta.settings import ETTASettings

WAYS = {
    "input": {"adapt": "input"},
    "input, no spectrum": {"adapt": "input"},
    "weights": {"adapt": "weights"},
    "both": {"adapt": "both"},
}
DOCS = ROOT / "bundles" / "swin_bob_btcv" / "docs"
ALL = (*NETWORKS, "U-Net", "U-Net augmented", "U-Net real CT")
UNSEEN_SEED, FIRST_DEFORMATION = 5000, 40
LOST = 3  # points by which a shift must lower the plain Dice, to count as harmful
Images = tuple[torch.Tensor, torch.Tensor]  # image (1, 1, X, Y, Z), label (X, Y, Z)
logger = logging.getLogger(__name__)


def development(case: Case, shift: str, strength: int) -> Images:
    """Return a development image."""
    image, label = read(case)
    change, strengths = SHIFTS[shift]
    return change(image, strengths[strength]).float().contiguous(), label


def unseen(case: Case, shift: str, strength: int, *, whole: bool = False) -> Images:
    """Return an image under an unseen shift; `whole` takes several windows."""
    hu, label = read(case, normalized=False, whole=whole)
    change, strengths = UNSEEN[shift]
    generator = torch.Generator().manual_seed(zlib.crc32(f"{shift} {case.number} {strength}".encode()))
    return normalize(change(Scan(hu, label, generator), strengths[strength])).float().contiguous(), label


@torch.no_grad()
def compare(case: Case, shift: str, image: torch.Tensor, label: torch.Tensor, ways: list[str]) -> Iterator[dict]:
    """Segment one image plain and adapted in each way; yield a row for each."""
    module = network(case.network)
    plain = mean_dice(inferer()(image, module), label)
    for way in ways:
        known = None if way.endswith("no spectrum") else spectrum(case.network)
        adapting = ETTAInferer(inferer(), ETTASettings(spectrum=known, **WAYS[way]))
        found = mean_dice(adapting(image, module), label)
        (outcome,) = adapting.outcomes
        ratios = {"entropy_ratio": outcome.entropy_after / outcome.entropy_before}
        ratios["foreground_ratio"] = outcome.foreground_entropy_after / outcome.foreground_entropy_before
        row = {"network": case.network, "case": case.number, "shift": shift, "way": way, "plain": plain}
        decision = {"accepted": outcome.accepted, "candidate": outcome.candidate, "reason": outcome.reason}
        yield {**row, "change": found - plain, **decision, **ratios}


def run(make: Callable[..., Images], chosen: list[Case], shifts: list[str], ways: list[str]) -> pd.DataFrame:
    """Compare all ways on all images; the strength of a shift is that of the case's place in its network's list."""
    torch.set_num_threads(1)
    rows, order = [], [case.network for case in chosen]
    work = [(case, index - order.index(case.network), shift) for index, case in enumerate(chosen) for shift in shifts]
    for case, place, shift in tqdm(work):
        strength = (place + shifts.index(shift)) % 3 if make is not development else place % 3
        image, label = make(case, shift, strength)
        rows += [{**row, "strength": strength} for row in compare(case, shift, image, label, ways)]
    table = pd.DataFrame(rows)
    clean = table[table["shift"] == "clean"].set_index(["network", "case", "way"])["plain"]
    keys = pd.MultiIndex.from_frame(table[["network", "case", "way"]])
    return table.assign(lost=clean.loc[keys].to_numpy() - table["plain"].to_numpy())


def interval(rows: pd.DataFrame, *, times: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the mean change: bootstrap over cases, each with all its images."""
    sums = rows.groupby(["network", "case"])["change"].agg(["sum", "size"]).to_numpy()
    drawn = np.random.default_rng(0).integers(len(sums), size=(times, len(sums)))
    total = sums[drawn].sum(axis=1)
    return tuple(np.percentile(total[:, 0] / total[:, 1], [2.5, 97.5]))


def summarise(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Summarise the change of each way by a column, with intervals, and over all shifted images."""
    shifted = table[table["shift"] != "clean"]
    harmed = shifted[shifted["lost"] >= LOST]
    found = []
    for way, some in table.groupby("way", sort=False):
        groups = [*some.groupby(by, sort=False)]
        groups += [(name, part[part["way"] == way]) for name, part in (("all shifted", shifted), ("harmed", harmed))]
        for name, part in groups:
            low, high = interval(part)
            row = {"way": way, by: name, "images": len(part), "plain": part["plain"].mean()}
            row |= {"lost": part["lost"].mean(), "change": part["change"].mean(), "low": low, "high": high}
            row |= {"worst_image": part["change"].min(), "accepted": part["accepted"].mean()}
            gained, harm = (part["change"] > 0.05).sum(), (part["change"] < -0.05).sum()
            found.append({**row, "images_gained": gained, "images_lost": harm})
    return pd.DataFrame(found)


def targets(table: pd.DataFrame, way: str, times: pd.DataFrame | None) -> pd.DataFrame:
    """Compare one way on the unseen shifts with the targets."""
    rows = table[table["way"] == way]
    shifted, clean = rows[rows["shift"] != "clean"], rows[rows["shift"] == "clean"]
    harmed = shifted[shifted["lost"] >= LOST]["change"].mean()
    by_shift, worst = shifted.groupby("shift")["change"].mean(), rows["change"].min()
    found = [
        (f"mean change where plain lost {LOST} or more", ">= 2", harmed, harmed >= 2),
        (f"worst shift: {by_shift.idxmin()}", ">= -0.2", by_shift.min(), by_shift.min() >= -0.2),
        ("clean cases", "-0.05 to 0.05", clean["change"].mean(), abs(clean["change"].mean()) <= 0.05),
        ("worst image", ">= -2", worst, worst >= -2),
    ]
    if times is not None:
        ratio = times.set_index("windows")["time_over_plain"]
        found.append(("time over plain, 27 windows", "<= 2", ratio[27], ratio[27] <= 2))
    return pd.DataFrame(found, columns=["target", "limit", "measured", "met"])


def draw(name: str, path: Path) -> None:
    """Draw the real CT with a wrong window, segmented by a network: before, after, reference."""
    case = cases(name, 1)[0]
    image, label = unseen(case, "window width", 2)
    with torch.no_grad():
        module, adapting = network(case.network), ETTAInferer(inferer(), ETTASettings(adapt="input"))
        maps = [inferer()(image, module)[0].argmax(0), adapting(image, module)[0].argmax(0), label]
    scores = [
        f"{name}, Dice {mean_dice(one_hot(m), label):.1f}" for name, m in zip(("before", "after"), maps, strict=False)
    ]
    figure, z = Figure(figsize=(9, 3.4), layout="constrained"), int((label > 0).sum((0, 1)).argmax())
    for axis, found, title in zip(figure.subplots(1, 3), maps, [*scores, "reference"], strict=True):
        axis.imshow(image[0, 0, :, :, z].T, cmap="gray", origin="lower", vmin=0, vmax=1)
        axis.imshow(np.ma.masked_equal(found[..., z].T, 0), cmap="tab20", origin="lower", vmin=1, vmax=13, alpha=0.6)
        axis.set_title(title)
        axis.invert_xaxis()  # the patient's right on the left
        axis.axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def one_hot(label_map: torch.Tensor) -> torch.Tensor:
    """Return scores whose argmax is a label map, (1, 14, X, Y, Z)."""
    return torch.nn.functional.one_hot(label_map, 14).movedim(-1, 0)[None]


def time_part() -> pd.DataFrame:
    """Time adapting the input as multiples of the plain network, each in its own process."""
    rows = []
    for windows in (8, 27):
        plain, case = (in_a_process(part, windows, {"adapt": "input"})["seconds"] for part in ("plain", "case"))
        rows.append({"way": "input", "windows": windows, "time_over_plain": case / plain})
    return pd.DataFrame(rows)


def report(name: str, table: pd.DataFrame) -> None:
    """Write the images and both summaries of a part."""
    write_table(table, RESULTS / f"etta_input_{name}_images.csv", decimals=3)
    for by in ("shift", "network"):
        found = summarise(table, by)
        write_table(found, RESULTS / f"etta_input_{name}_by_{by}.csv", decimals=2)
        logger.info("\n%s", found.round(2).to_string())


def main() -> int:
    """Run the parts that are asked for and write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("development", "unseen", "time", "picture"), help="default: all")
    parser.add_argument("--cases", type=int, default=6, help="cases of each network under unseen shifts (default: 6)")
    parser.add_argument("--whole", action="store_true", help="unseen shifts of whole images, of several windows each")
    parser.add_argument("--networks", nargs="+", choices=ALL, default=ALL, help="default: all")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parts = [args.part] if args.part else ["development", "unseen", "time", "picture"]
    if "development" in parts:
        chosen = [case for name in trained(args.networks) for case in cases(name, 3)]
        report("development", run(development, chosen, list(SHIFTS), args.ways))
    if "unseen" in parts:
        options: dict[str, Any] = {"seed": UNSEEN_SEED, "first": FIRST_DEFORMATION}
        chosen = [case for name in trained(args.networks) for case in cases(name, args.cases, **options)]
        make, name = (partial(unseen, whole=True), "whole") if args.whole else (unseen, "unseen")
        report(name, run(make, chosen, list(UNSEEN), args.ways))
    if "time" in parts:
        write_table(time_part(), RESULTS / "etta_input_time.csv", decimals=2)
    if "picture" in parts:
        for name in trained([name for name in args.networks if RECIPES[name].start is not None]):
            draw(name, DOCS / "etta_input.png")
    paths = [RESULTS / f"etta_input_{name}.csv" for name in ("unseen_images", "time")]
    if paths[0].is_file():
        times = pd.read_csv(paths[1]) if paths[1].is_file() else None
        found = targets(pd.read_csv(paths[0]), "input", times)
        logger.info("\n%s", found.round(2).to_string())
        write_table(found, RESULTS / "etta_input_targets.csv", decimals=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
