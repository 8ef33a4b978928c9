"""Measure whether adapting the weights helps: `python -m benchmarks.etta_shift`.

Trains three small networks unless their weights exist: two on phantoms, one of them too briefly, and one fine-tuned on
a real CT. Each segments cases without and with eight shifts at three strengths, each strength on another case, plain
and adapted in several ways, all in one run. Then measures time and peak memory by the number of windows, each in a
fresh process. Writes `results/etta_*.csv` and `etta_shift.png`; `etta_targets.csv` compares the results with the
targets.

The defaults of `ETTASettings` were chosen on two phantoms of another seed, with another well-trained network and with
the under-trained one; the other two networks and all test cases were not used for that.
"""

from __future__ import annotations

import argparse
import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.etta.cost import inferer, memory_table, time_table
from benchmarks.etta.networks import Case, cases, network, read, trained
from benchmarks.etta.objectives import etta_settings
from benchmarks.etta.shifts import SHIFTS
from scripts.common.files import atomic_path, write_table
from scripts.etta.inferer import ETTAInferer
from scripts.etta.outcome import ACCEPTED

RESULTS = Path(__file__).parent / "results"
BARE = {"adapt": "weights", "guard": False, "keep": "last", "windows_per_step": None, "steps": 1}
WAYS: dict[str, dict[str, Any]] = {
    "paper: SGD 0.01, 3 steps": {**BARE, "steps": 3, "lr": 0.01, "optimizer": "sgd"},
    "Tent: Adam 0.001, 1 step": {**BARE, "lr": 0.001},
    "InTEnt's balance: as Tent": {**BARE, "lr": 0.001, "objective": "balanced"},
    "ours without guard": {"adapt": "weights", "guard": False},
    "ours": {"adapt": "weights"},
}
OURS = "ours"
NETWORKS = ("well trained", "under-trained", "real CT")
Task = tuple[Case, str, int]
logger = logging.getLogger(__name__)


def mean_dice(logits: torch.Tensor, label: torch.Tensor) -> float:
    """Return the mean Dice of the organs that the label has, in points of 100."""
    pred = logits[0].argmax(0)
    pairs = [(pred == k, label == k) for k in range(1, logits.shape[1])]
    return 100 * float(np.mean([2 * float((p & t).sum()) / float(p.sum() + t.sum()) for p, t in pairs if t.any()]))


@torch.no_grad()
def compare(task: Task) -> list[dict[str, object]]:
    """Segment one case under one shift in every way; return a row for each way."""
    case, shift, strength = task
    torch.set_num_threads(1)
    image, label = read(case)
    change, strengths = SHIFTS[shift]
    image = change(image, strengths[strength]).float().contiguous()
    module = network(case.network)
    plain = mean_dice(inferer()(image, module), label)
    row = {"network": case.network, "case": case.number, "shift": shift, "strength": strengths[strength]}
    rows = []
    for way, settings in WAYS.items():
        if way == OURS:
            continue
        adapting = ETTAInferer(inferer(), etta_settings(settings))
        found = mean_dice(adapting(image, module), label) - plain
        reason = adapting.outcomes[0].reason
        rows.append({**row, "way": way, "plain": plain, "change": found, "accepted": True, "reason": reason})
    accepted = reason == ACCEPTED  # of the last way, ours without guard: its reason is the verdict of the guard
    return [*rows, {**rows[-1], "way": OURS, "change": found if accepted else 0.0, "accepted": accepted}]


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise cases and strengths: mean and worst change and accepted share by network, way and shift."""
    grouped = rows.groupby(["network", "way", "shift"], sort=False)
    table = grouped.agg(
        images=("change", "size"),
        plain=("plain", "mean"),
        mean_change=("change", "mean"),
        worst_change=("change", "min"),
        accepted=("accepted", "mean"),
    )
    return table.reset_index()


def overall(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise all shifted images: mean change, mean of the worst shift and worst image by network and way."""
    shifted = rows[rows["shift"] != "clean"]
    found = []
    for (name, way), some in [*shifted.groupby(["network", "way"], sort=False)] + [
        (("all", way), some) for way, some in shifted.groupby("way", sort=False)
    ]:
        clean = rows[(rows["shift"] == "clean") & (rows["way"] == way)]
        clean = clean if name == "all" else clean[clean["network"] == name]
        worst_shift = some.groupby(["network", "shift"])["change"].mean().min()
        row = {"network": name, "way": way, "mean_change": some["change"].mean(), "worst_shift_mean": worst_shift}
        row |= {"worst_image": some["change"].min(), "clean_change": clean["change"].mean()}
        found.append({**row, "accepted": some["accepted"].mean()})
    return pd.DataFrame(found)


def shift_targets(table: pd.DataFrame) -> list[tuple[str, str, float, bool]]:
    """Compare the changes of ours with the targets, for each network and for all."""
    found = []
    for row in table[table["way"] == OURS].itertuples():
        name = "all networks" if row.network == "all" else row.network
        mean, worst, clean = row.mean_change, row.worst_shift_mean, row.clean_change
        found.append((f"mean change under shift, {name}", ">= 1.0", mean, mean >= 1.0))
        found.append((f"worst shift's mean, {name}", ">= -0.2", worst, worst >= -0.2))
        found.append((f"clean cases, {name}", "-0.1 to 0.1", clean, abs(clean) <= 0.1))
    return found


def cost_targets(times: pd.DataFrame, memory: pd.DataFrame) -> list[tuple[str, str, float, bool]]:
    """Compare time and memory of ours with the targets."""
    ours = times[times["way"] == OURS].set_index("windows")["time_over_plain"]
    memory = memory.set_index("windows")
    peak, spread = memory["peak_over_plain_and_step"].max(), memory["adapting_mb"][64] / memory["adapting_mb"][8]
    whole = memory["held_case_mb"][64] / memory["held_case_mb"][8]
    return [
        ("time over plain, 27 windows", "<= 2.0", ours[27], ours[27] <= 2.0),
        ("time over plain, 64 windows", "<= 2.0", ours[64], ours[64] <= 2.0),
        ("peak memory over plain and a training step", "<= 1.5", peak, peak <= 1.5),
        ("memory of adapting, 64 over 8 windows", "0.9 to 1.1", spread, abs(spread - 1) <= 0.1),
        ("memory of the whole case as held, 64 over 8 windows", "0.9 to 1.1", whole, abs(whole - 1) <= 0.1),
    ]


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the mean change of each way under each shift, a panel for each network."""
    names = list(table["network"].unique())
    figure = Figure(figsize=(11, 3.2 * len(names)), layout="constrained")
    for axis, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        some = table[table["network"] == name].pivot(index="shift", columns="way", values="mean_change")
        some = some.loc[list(SHIFTS), list(WAYS)]
        for offset, way in enumerate(WAYS):
            axis.bar(np.arange(len(some)) + 0.16 * (offset - 2), some[way], width=0.16, label=way)
        axis.set_xticks(np.arange(len(some)), some.index, rotation=15)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_ylabel("change of mean Dice (points)")
        axis.set_title(name)
    figure.axes[0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def tasks(names: list[str], count: int) -> list[Task]:
    """List all images: each case clean and under each shift, at one of the three strengths in turn."""
    chosen = [case for name in names for case in cases(name, count)]
    return [(case, shift, case.number % 3) for case in chosen for shift in SHIFTS]


def main() -> int:
    """Run both parts and write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=3, help="cases of each network (default: 3, one per strength)")
    parser.add_argument("--part", choices=("shift", "cost", "both"), default="both", help="default: both")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    RESULTS.mkdir(exist_ok=True)
    if args.part in ("shift", "both"):
        shift_part(tasks(trained(NETWORKS), args.cases))
    if args.part in ("cost", "both"):
        cost_part()
    write_targets()
    return 0


def write_targets() -> None:
    """Compare the tables that exist with the targets."""
    found = []
    if (RESULTS / "etta_means.csv").is_file():
        found += shift_targets(pd.read_csv(RESULTS / "etta_means.csv"))
    if (RESULTS / "etta_memory.csv").is_file():
        found += cost_targets(*(pd.read_csv(RESULTS / f"etta_{name}.csv") for name in ("time", "memory")))
    targets = pd.DataFrame(found, columns=["target", "limit", "measured", "met"])
    logger.info("\n%s", targets.to_string())
    write_table(targets, RESULTS / "etta_targets.csv", decimals=2)


def shift_part(work: list[Task]) -> None:
    """Compare all ways on all images; write the tables and the plot."""
    with ProcessPoolExecutor(2) as pool:
        rows = pd.DataFrame([row for some in tqdm(pool.map(compare, work), total=len(work)) for row in some])
    table, means = summarise(rows), overall(rows)
    write_table(rows, RESULTS / "etta_images.csv", decimals=2)
    write_table(table, RESULTS / "etta_shift.csv", decimals=2)
    write_table(means, RESULTS / "etta_means.csv", decimals=2)
    draw(table, RESULTS / "etta_shift.png")
    logger.info("\n%s\n\n%s", table.round(2).to_string(), means.round(2).to_string())
    decisions = rows[rows["way"] == OURS]["reason"].str.replace(r"-?(\d[\d.]*|nan)", "…", regex=True)
    logger.info("\n%s", decisions.value_counts().to_string())


def cost_part() -> None:
    """Measure time and memory and write the tables."""
    ways = {way: settings for way, settings in WAYS.items() if way != "ours without guard"}
    times, memory = time_table(ways, OURS), memory_table()
    logger.info("\n%s\n\n%s", times.round(2).to_string(), memory.round(2).to_string())
    write_table(times, RESULTS / "etta_time.csv", decimals=2)
    write_table(memory, RESULTS / "etta_memory.csv", decimals=2)


if __name__ == "__main__":
    sys.exit(main())
