"""The text and the picture of `benchmarks.solf_quality`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scripts.common.files import atomic_path

MAIN = ("phantoms, 5 %", "torso", "brain")
SHOWN = ("volume only, 2 %", "paper: 2 %, 2 of 3", "robust.json of 0.3.0", "default")
"""The rules whose kinds of error are shown."""

_INTRODUCTION = """# What the label filter finds

`python -m benchmarks.solf_quality`

- `phantoms`: {phantoms} phantom people, and errors of `tools.label_errors` in 2, 5 or 10 % of the organs.
- `torso` and `brain`: {people} people each, warped by smooth random deformations (size, proportions, turn, place, and
  two waves of shifts) from one CT's 60 labels and one parcellation's 150. Errors are injected into 6 % of the labels by
  code that shares nothing with the phantoms' generator, and 8 % of the people have a truncated field of view.

A label is wrong if its Dice with the correct one is below 0.9, because of its own error or of another's; a missing
organ is found if it has a row `missing`, under every rule. Labels that a truncated field of view no longer shows are
not errors. Every rule is fitted to these maps with their errors and applied to them, and then to a cohort without any
error. Nobody has drawn these errors by hand, and all people of a cohort are warped from one: the tables show how rules
compare, not how often they are right about patients.

Labels: {labels}.
"""

_BY_KIND = (
    "Precision / recall / F1 of each kind. A false rejection has no kind: the precision of a kind is what it would be "
    "if all errors were of this kind and as many as all are."
)
_TRIED = "F1 / share of correct labels rejected, on other people with the same kinds of error. Default: `{default}`."


def markdown(
    table: pd.DataFrame, tried: pd.DataFrame, *, default: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]
) -> str:
    """Write the results as text.

    Args:
        table: a row per rule, cohort and kind of error.
        tried: a row per rule and cohort on which the rules were chosen.
        default: options of the default rule.
        sizes: cohort to its number of people and labels.
    """
    labels = ", ".join(f"{name} {count:,}" for name, (_, count) in sizes.items())
    people = {"phantoms": sizes[MAIN[0]][0], "people": sizes["torso"][0]}
    parts = [_INTRODUCTION.format(labels=labels, **people).rstrip()]
    for cohort in dict.fromkeys(table["cohort"]):
        own = table[table["cohort"] == cohort]
        parts += [f"## {cohort.capitalize()}", _grid(_overall(own[own["kind"] == "all"]))]
        if cohort in MAIN:
            parts += [_BY_KIND, _grid(_kinds(own))]
    parts += ["## Choosing the factor", _TRIED.format(default=_options(default)), _grid(_tried(tried))]
    return "\n\n".join(parts) + "\n"


def _overall(whole: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "rule": whole["rule"],
            "precision": whole["precision"].map(_number),
            "recall": whole["recall"].map(_number),
            "F1": whole["f1"].map(_number),
            "correct labels rejected": whole["false_rejections"].map("{:.2%}".format),
            "false `missing`": whole["false_missing"].map("{:.0f}".format),
            "clean cohort rejected": whole["clean_rejected"].map("{:.2%}".format),
            "mean Dice before": whole["dice_before"].map(_number),
            "of kept labels": whole["dice_kept"].map(_number),
            "rejected as 0": whole["dice_missing_as_0"].map(_number),
        }
    )


def _kinds(own: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for kind, found in own[own["kind"] != "all"].groupby("kind"):
        cells = found.set_index("rule")[["precision", "recall", "f1"]].map(_number).agg(" / ".join, axis=1)
        first = found.iloc[0]
        rows.append({"kind": kind, "errors": str(int(first["errors"])), "median Dice": _number(first["median_dice"])})
        rows[-1] |= {name: cells[name] for name in SHOWN}
    return pd.DataFrame(rows)


def _tried(tried: pd.DataFrame) -> pd.DataFrame:
    cells = tried["f1"].map(_number) + " / " + tried["false_rejections"].map("{:.2%}".format)
    wide = tried.assign(cell=cells).pivot(index="rule", columns="cohort", values="cell")
    return wide.loc[tried["rule"].unique(), tried["cohort"].unique()].rename_axis(None, axis=1).reset_index()


def _options(rule: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in rule.items())


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _grid(table: pd.DataFrame) -> str:
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw precision against recall of every rule, and the recall of each kind of error, of each main cohort.

    Args:
        table: a row per rule, cohort and kind of error.
        path: of the PNG file.
    """
    figure = Figure(figsize=(16, 10), layout="constrained")
    axes = figure.subplots(2, len(MAIN))
    for column, cohort in enumerate(MAIN):
        own = table[table["cohort"] == cohort]
        _draw_rules(axes[0, column], own[(own["kind"] == "all") & own["precision"].notna()], cohort)
        _draw_kinds(axes[1, column], own[own["kind"] != "all"])
    axes[0, 0].legend(fontsize=8, loc="lower left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw_rules(axis: Any, rules: pd.DataFrame, cohort: str) -> None:
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.linspace(f1 / (2 - f1), 1, 100)
        axis.plot(recall, f1 * recall / (2 * recall - f1), color="0.85", linewidth=1, zorder=0)
        axis.text(1.0, f1 / (2 - f1), f" F1 {f1}", color="0.5", fontsize=8, va="center")
    marks: Sequence[str] = "sD^vP*Xo<>"
    for mark, row in zip(marks, rules.itertuples(), strict=False):
        axis.plot(row.recall, row.precision, mark, markersize=9, label=row.rule)
    axis.set(xlim=(0, 1.08), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=cohort)


def _draw_kinds(axis: Any, kinds: pd.DataFrame) -> None:
    recall = kinds.pivot(index="kind", columns="rule", values="recall")[list(SHOWN)].sort_values(SHOWN[-1])
    axis.imshow(recall, vmin=0, vmax=1, cmap="YlGn", aspect="auto")
    for row, column in np.ndindex(recall.shape):
        value = recall.iloc[row, column]
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.7 else "black")
    axis.set_xticks(range(len(SHOWN)), [name.replace(", ", "\n").replace(" of 0", "\nof 0") for name in SHOWN])
    axis.set_yticks(range(len(recall)), recall.index)
    axis.set_title("recall of each kind of error")
