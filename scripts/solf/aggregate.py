"""Results that may leave a secure environment: per organ, without names, small counts and values of single people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scripts.common.files import remove_leftovers, write_json, write_text
from scripts.common.small_counts import LEAST, check_folder, shown
from scripts.solf.thresholds import Thresholds, readable

FILES = ("about.txt", "aggregate.csv", "thresholds.json")
_ALWAYS = ("volume_mm3", "components", "asymmetry")  # features with quantiles, whether they vote or not
_PERCENTS = (5, 25, 50, 75, 95)
_ENOUGH = 26  # values, for all quantiles: the five people of one are then none of another's
_SETTINGS = ("rule", "epsilon_percent", "iqr_factor", "mad_factor", "decile_factor", "missing_percent", "version")
_ABOUT = """Aggregated results of the label filter solf_filter: {cases} cases; {failed} more could not be read.

aggregate.csv has a row per organ: the number of cases that have it, and in how many of them it is rejected or touches
the image's edge, or is reported as missing; percentages are of all cases. Quantiles are means of the five values
nearest in rank; the median is given from 5 values, the others from 26. Numbers have four digits.
thresholds.json has the thresholds of the filter that judged the labels, in three digits.

No case is named and no row is one person's. A count below 5 is "<5", also 0. A count that leaves less than 5 of the
whole that it is part of could be subtracted from it: it is given as ">N", or as "withheld" where the whole is not
given exactly. There are no totals over organs. Thresholds of organs with less than 5 cases are left out, and those of
the rule "percentile" where less than 5 people lie beyond; elsewhere, those of this rule lie between the values of two
people. Two such folders of almost the same people could be subtracted from each other: do not release both.
"""


def write_aggregate(folder: Path, *, decisions: Iterable[pd.DataFrame], thresholds: Thresholds, failed: int) -> None:
    """Write `aggregate.csv`, `thresholds.json` and `about.txt`.

    Args:
        folder: of these files alone.
        decisions: tables of `scripts.solf.thresholds.judge` with `case`, of which each is in one table.
        thresholds: that the decisions follow.
        failed: number of cases that could not be measured.

    Raises:
        InputError: the folder holds other files.
    """
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    check_folder(folder, FILES)
    names = [*thresholds.features, *(name for name in _ALWAYS if name not in thresholds.features)]
    parts, cases = [], 0
    for table in decisions:
        parts.append(table[["label", "decision", "touches_border", *names]].astype(dict.fromkeys(names, "float32")))
        cases += table["case"].nunique()
    by_label = dict(iter(pd.concat(parts, ignore_index=True).groupby("label")))
    nothing = parts[0][:0]
    rows = [
        {"label": label, "organ": organ, **_row(by_label.get(label, nothing), cases, names)}
        for label, organ in thresholds.organs.items()
    ]
    text = pd.DataFrame(rows).to_csv(index=False, float_format="%.4g", lineterminator="\n")
    write_text(folder / "aggregate.csv", text)
    write_json(folder / "thresholds.json", _without_small_counts(thresholds))
    write_text(folder / "about.txt", _ABOUT.format(cases=shown(cases), failed=shown(failed)))


def _row(own: pd.DataFrame, cases: int, names: list[str]) -> dict[str, Any]:
    """Return the counts and quantiles of an organ.

    Args:
        own: its decisions.
        cases: number of all cases.
        names: of the features with quantiles.
    """
    absent, edge = own["decision"] == "missing", own["touches_border"].fillna(False).astype(bool)
    present = int((~absent).sum())
    known = shown(present, cases) == str(present)
    part = {"rejected": (own["decision"] == "reject").sum(), "touches_border": edge.sum(), "missing": absent.sum()}
    row = {"cases": shown(present, cases)}
    for name, count in part.items():
        whole = cases - present if name == "missing" else present
        row[name] = shown(int(count), whole, whole_shown=known)
        exact = row[name] == str(count)
        row[f"{name}_percent"] = 100 * count / cases if exact else np.nan
    for name in names:
        row |= {f"{name}_p{percent}": value for percent, value in _quantiles(own.loc[~absent, name].to_numpy()).items()}
    return row


def _quantiles(values: np.ndarray) -> dict[int, float]:
    """Return means of the five values nearest in rank to each of `_PERCENTS`; NaN where there are too few."""
    known = np.sort(values[~np.isnan(values)].astype(float))
    found = dict.fromkeys(_PERCENTS, np.nan)
    for percent in _PERCENTS if len(known) >= _ENOUGH else (50,):
        first = int(np.clip(round(percent / 100 * (len(known) - 1)) - LEAST // 2, 0, max(len(known) - LEAST, 0)))
        if len(known) >= LEAST:
            found[percent] = float(known[first : first + LEAST].mean())
    return found


def _without_small_counts(thresholds: Thresholds) -> dict[str, Any]:
    """Return `readable` thresholds of which all that may tell of single people is left out or rounded."""
    plain, cases = readable(thresholds), thresholds.cases
    content = {name: plain[name] for name in _SETTINGS if name in plain}
    content |= {name: plain[name] for name in ("fingerprint", "features", "votes")}
    needed = 100 * LEAST / plain["epsilon_percent"] if plain.get("rule") == "percentile" else LEAST
    organs = {}
    for row, (label, organ) in zip(thresholds.subjects.tolist(), plain["organs"].items(), strict=True):
        organs[label] = {"organ": organ["organ"], "subjects": shown(row, cases)}
        for name in thresholds.features:
            organs[label][name] = {
                end: float(f"{organ[name][end]:.3g}") if organ[name][end] is not None and row >= needed else None
                for end in ("low", "high")
            }
    return {**content, "subjects": shown(cases), "organs": organs}
