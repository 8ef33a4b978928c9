"""The plot of a study of prompts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.common.files import atomic_path


def plot(summary: pd.DataFrame, path: Path) -> None:
    """Draw mean Dice by kind of prompt, by number of clicks and by jitter, side by side.

    Args:
        summary: rows of `scripts.segvol.study.summarise` of one organ, or of the mean.
        path: PNG to write.
    """
    figure = Figure(figsize=(11.0, 3.6), dpi=130, layout="constrained")
    kinds, clicks, jitter = figure.subplots(1, 3, sharey=True, width_ratios=(1.4, 1, 1))
    exact = summary[(summary["jitter"] == 0) & (summary["clicks"] == 0)]
    bars = kinds.bar(exact["prompt"], exact["dice"], color="C0")
    kinds.bar_label(bars, fmt="%.2f", fontsize=8)
    kinds.tick_params(axis="x", rotation=30)
    kinds.set(ylabel="mean Dice", ylim=(0, 1), xlabel="prompt")
    rows = summary[summary["clicks"] > 0]
    clicks.plot(rows["clicks"], rows["dice"], marker="o")
    clicks.set(xlabel="simulated clicks", xticks=rows["clicks"])
    for kind in ("box", "points"):
        rows = summary[(summary["prompt"] == kind)].sort_values("jitter")
        jitter.plot(rows["jitter"], rows["dice"], marker="o", label=kind)
    jitter.set(xlabel="jitter, share of the organ's extent")
    jitter.legend(frameon=False)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
