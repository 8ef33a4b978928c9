"""The text and the picture of `benchmarks.solf_quality`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scripts.common.files import atomic_path

SHOWN = (
    "published code: fixed ranges",
    "IQR: Tukey's fences, 2 of 3",
    "volume only, 2 % at each end",
    "paper: 2 % at each end, 2 of 3",
    "tuned, shape alone",
    "tuned, with position",
)
"""The rules whose kinds of error are shown."""

WHY = {
    "shifted": "Volume and shape do not change. Only position shows it, if the organ lies where it never does.",
    "swapped": "Left and right organs are mirror images, so all three features stay. The sign of the offset shows it.",
    "eroded": "The shape stays; 25 to 60 % less volume is often within the normal variation.",
    "dilated": "The shape stays; 35 to 100 % more volume is often within the normal variation.",
    "overwritten": "It lost some voxels to another label's error, which hardly changes its own shape.",
    "leak": "A bulge changes sphericity and volume, less so in organs whose own shape varies.",
    "missing half": "Volume and eccentricity fall together where an organ is cut across its longest axis.",
    "fragments": "A broken surface has a sphericity that no whole organ has: the easiest error to see by shape.",
    "wrong organ": "Found if the two organs differ in size or shape; by position nearly always.",
}


def markdown(
    table: pd.DataFrame,
    rules: Mapping[str, Any],
    *,
    rate: float,
    subjects: int,
    labels: int,
    ranges: pd.Series,
    chosen: Mapping[str, float],
) -> str:
    """Write the results as text.

    Args:
        table: of `benchmarks.solf_quality`, a row per rule, error rate and kind.
        rules: options of each rule, by name.
        rate: the main error rate.
        subjects: people in each cohort.
        labels: labels of the cohort that is reported.
        ranges: share of right labels that the fixed ranges reject, by organ, highest first.
        chosen: F1 of the tuned rules on the cohort that they were chosen on.
    """
    main = table[table["error_rate"] == rate]
    whole = main[main["kind"] == "all"].set_index("rule")
    parts = [
        "# What the label filter finds\n\n`python -m benchmarks.solf_quality`",
        _setting(whole, subjects=subjects, labels=labels),
        _grid(_overall(whole)),
        _readings(whole, rules, ranges, chosen),
        "## By kind of error\n\nPrecision / recall / F1. A false rejection has no kind: the precision of a kind is "
        "what it would be if all errors were of this kind and as many as all are.",
        _grid(_kinds(main)),
        "## What a shape filter cannot see\n\nRecall of the paper's rule at 2 % and of the best rule, which also knows "
        "where an organ lies.",
        _grid(_unseen(main)),
        "None of these features looks at the image: an organ of normal size, shape and position passes, however wrong "
        "its border is.",
        "## More and fewer errors\n\nF1 if 2, 5 and 10 % of the organs get an error; each rule is fitted to the cohort "
        "that it filters. The more errors a cohort has, the more of the extreme percentiles they fill.",
        _grid(_rates(table)),
    ]
    return "\n\n".join(parts) + "\n"


def _setting(whole: pd.DataFrame, *, subjects: int, labels: int) -> str:
    errors = int(whole["errors"].iloc[0])
    return (
        f"{subjects} phantom people, {labels} labels, {errors} of them wrong ({errors / labels:.1%}): their Dice with "
        "the correct label is below 0.9, because of their own error or because they lost voxels to that of another. "
        "Labels that vanished are not counted. Every rule is fitted to these corrupted maps and applied to them; then "
        f"it is applied to {subjects} other people without errors (clean cohort). The tuned rules were chosen on a "
        "third cohort by their F1. Phantoms show how rules compare, not how well they work on patients."
    )


def _overall(whole: pd.DataFrame) -> pd.DataFrame:
    percent = {
        "correct labels rejected": whole["false_rejections"],
        "clean cohort rejected": whole["clean_cohort_rejected"],
        "clean cohort rejected, fitted to itself": whole["clean_cohort_rejected_by_its_own"],
    }
    columns = {name: whole[name].map(_number) for name in ("precision", "recall", "f1")}
    columns |= {name: values.map("{:.1%}".format) for name, values in percent.items()}
    columns |= {
        "mean Dice before": whole["dice_before"].map(_number),
        "of kept labels": whole["dice_kept"].map(_number),
        "rejected as 0": whole["dice_missing_as_0"].map(_number),
    }
    return pd.DataFrame(columns).rename(columns={"f1": "F1"}).reset_index()


def _readings(whole: pd.DataFrame, rules: Mapping[str, Any], ranges: pd.Series, chosen: Mapping[str, float]) -> str:
    best, alone, paper = "tuned, with position", "tuned, shape alone", "paper: 2 % at each end, 2 of 3"
    own = whole["clean_cohort_rejected_by_its_own"]
    worst = ", ".join(f"{organ} ({share:.0%})" for organ, share in ranges.head(8).items())
    lines = [
        f"The best rule: `{_options(rules[best])}`; its F1 on the tuning cohort was {chosen[best]:.3f}. By shape "
        f"alone: `{_options(rules[alone])}`, {chosen[alone]:.3f}.",
        f"The percentile rule rejects a fixed share of the cohort it is fitted to, even if nothing is wrong: at 2 % "
        f"{own[paper]:.1%} of a clean cohort, at 5 % {own[paper.replace('2 %', '5 %')]:.1%}. Robust deviations from "
        f"the median have no such share ({own[best]:.1%}: the tails of natural variation).",
        f"Mean Dice of kept labels, as the paper counts (0.873 to 0.891 there): {whole['dice_before'].iloc[0]:.3f} to "
        f"{whole.loc[paper, 'dice_kept']:.3f} by the paper's rule and to {whole.loc[best, 'dice_kept']:.3f} by the "
        "best. With rejected labels counted as 0 every filter lowers the mean: a wrong label overlaps more than none. "
        "A filter improves labels by leaving some out of the loss, not by correcting them.",
        f"The fixed ranges reject correct labels of {worst}. They allow every organ without its own range 10 L and "
        "three components, which muscles, fat and the spine exceed in everyone; the phantoms' hearts are small enough "
        "to fit their range.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _options(rule: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={list(value) if isinstance(value, tuple) else value!r}" for name, value in rule.items())


def _kinds(main: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for kind, own in main[main["kind"] != "all"].groupby("kind"):
        cells = own.set_index("rule")[["precision", "recall", "f1"]].map(_number).agg(" / ".join, axis=1)
        rows.append({"kind": kind, "errors": str(int(own["errors"].iloc[0])), **{name: cells[name] for name in SHOWN}})
    return pd.DataFrame(rows)


def _unseen(main: pd.DataFrame) -> pd.DataFrame:
    recall = main.pivot(index="kind", columns="rule", values="recall")
    dice = main.groupby("kind")["median_dice"].first()
    names = ("paper: 2 % at each end, 2 of 3", "tuned, with position")
    rows = [
        {
            "kind": kind,
            "median Dice": _number(dice[kind]),
            "paper, 2 %": _number(recall.loc[kind, names[0]]),
            "best": _number(recall.loc[kind, names[1]]),
            "why": why,
        }
        for kind, why in WHY.items()
        if kind in recall.index
    ]
    return pd.DataFrame(rows).sort_values("paper, 2 %", kind="stable")


def _rates(table: pd.DataFrame) -> pd.DataFrame:
    whole = table[table["kind"] == "all"].pivot(index="rule", columns="error_rate", values="f1")
    whole = whole.loc[[name for name in table["rule"].unique() if name != "no filter"]]
    return whole.map(_number).rename(columns="{:.0%}".format).rename_axis(None, axis=1).reset_index()


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _grid(table: pd.DataFrame) -> str:
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw precision against recall of every rule, and the recall of each kind of error.

    Args:
        table: of `benchmarks.solf_quality`, at the main error rate.
        path: of the PNG file.
    """
    figure = Figure(figsize=(15, 6.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_rules(left, table[(table["kind"] == "all") & table["precision"].notna()])
    recall = table[table["kind"] != "all"].pivot(index="kind", columns="rule", values="recall")[list(SHOWN)]
    recall = recall.sort_values(SHOWN[-1])
    right.imshow(recall, vmin=0, vmax=1, cmap="YlGn", aspect="auto")
    for row, column in np.ndindex(recall.shape):
        value = recall.iloc[row, column]
        right.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.7 else "black")
    right.set_xticks(range(len(SHOWN)), [_broken(name) for name in SHOWN], fontsize=9)
    right.set_yticks(range(len(recall)), recall.index)
    right.set_title("recall of each kind of error")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_rules(axis: Any, rules: pd.DataFrame) -> None:
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.linspace(f1 / (2 - f1), 1, 100)
        axis.plot(recall, f1 * recall / (2 * recall - f1), color="0.85", linewidth=1, zorder=0)
        axis.text(1.0, f1 / (2 - f1), f" F1 {f1}", color="0.5", fontsize=8, va="center")
    paper = rules[rules["rule"].str.startswith("paper")]
    axis.plot(paper["recall"], paper["precision"], "o-", label="paper: 1 to 5 % at each end, 2 of 3")
    for name, recall, precision in paper[["rule", "recall", "precision"]].to_numpy():
        axis.annotate(
            name.split()[1] + " %", (recall, precision), xytext=(6, 4), textcoords="offset points", fontsize=8
        )
    marks: Sequence[str] = "sD^vP*X"
    for mark, row in zip(marks, rules[~rules["rule"].str.startswith("paper")].itertuples(), strict=False):
        axis.plot(row.recall, row.precision, mark, markersize=10, label=row.rule)
    axis.set(xlim=(0, 1.08), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="all errors")
    axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)


def _broken(name: str) -> str:
    head, _, tail = name.partition(",")
    return "\n".join([*head.split(": "), *tail.strip().split(", ")])
