"""Drift: how far the features of a site's or a month's people lie from the cohort's."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scripts.solf.covariates import DATE, SITE, Covariates, month
from scripts.solf.norms import even
from scripts.solf.reference import SIGMA_OF_MAD
from scripts.solf.thresholds import Thresholds, organ_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("kind", "group", "label", "organ", "feature", "subjects", "difference", "chance")
_MIN_PEOPLE = 20  # of a group, with the organ
_SHOWN, _NAMED = 25, 5  # organs' features in the picture, differences in words
_MEDIAN_ERROR = 1.2533  # standard error of a normal distribution's median over that of its mean
_CHANCE = 0.05  # that one of all differences or more exceed `chance` without any drift
_FULL_COLOUR = 1.0  # spreads


def measure_drift(
    decisions: Iterable[pd.DataFrame], thresholds: Thresholds, covariates: Covariates | None
) -> pd.DataFrame | None:
    """Compare the sites, and the months, of a cohort.

    Args:
        decisions: of `scripts.solf.thresholds.judge`, in chunks. What covariates predict is put back, so that drift
            shows even where `site` is a covariate.
        thresholds: that they were made with.
        covariates: of the cohort.

    Returns:
        `COLUMNS`, a row per site or month (`kind`), label and voting feature of at least 20 people: `difference`, the
        median of the group less that of the cohort, in robust standard deviations of the cohort (of logarithms of
        volumes and roots of counts), and `chance`, which differences between people exceed in one of 20 cohorts without
        drift. None without `site` or `date`, or without two such groups.
    """
    if covariates is None or not covariates.groups:
        return None
    parts = [_ungrouped(table, thresholds) for table in _unadjusted(decisions, thresholds, covariates)]
    units = _standardised(pd.concat(parts, ignore_index=True), thresholds.features)
    people = {name: covariates.rows.get(name, {}) for name in units["case"].unique()}
    groups = {
        SITE: {name: row.get(SITE) or None for name, row in people.items()},
        "month": {name: month(row.get(DATE, "")) for name, row in people.items()},
    }
    found = [_of_kind(units, kind, group_of, thresholds) for kind, group_of in groups.items()]
    drift = pd.concat(found, ignore_index=True)
    if drift.empty:
        return None
    z = NormalDist().inv_cdf(1 - _CHANCE / 2 / len(drift))
    return drift.assign(chance=z * _MEDIAN_ERROR / np.sqrt(drift["subjects"]))[list(COLUMNS)]


def _unadjusted(
    decisions: Iterable[pd.DataFrame], thresholds: Thresholds, covariates: Covariates
) -> Iterable[pd.DataFrame]:
    """Yield the labels of decisions with their features as measured."""
    names = thresholds.features
    for table in decisions:
        labels = table[table["decision"] != "missing"]
        if thresholds.norms is not None:
            cases, case_names = pd.factorize(labels["case"])
            designs = thresholds.norms.designs(list(case_names), covariates.rows)[0][cases]
            values, rows = labels[names].to_numpy(dtype=float), organ_rows(labels, thresholds.organs)
            values = thresholds.norms.adjusted(values, names, rows, designs, sign=-1)
            labels = labels.assign(**dict(zip(names, values.T, strict=True)))
        yield labels


def _ungrouped(labels: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    """Return case, label and the features on an even scale, small."""
    features = {name: even(labels[name].to_numpy(dtype=float), name).astype("f4") for name in thresholds.features}
    return pd.DataFrame({"case": labels["case"].astype(object), "label": labels["label"], **features})


def _standardised(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return features less the organ's median, in units of its spread; NaN where all are alike."""
    for name in names:
        table[name] -= table.groupby("label")[name].transform("median")
        spread = SIGMA_OF_MAD * table[name].abs().groupby(table["label"]).transform("median")
        table[name] /= spread.where(spread > 0)
    return table


def _of_kind(units: pd.DataFrame, kind: str, group_of: dict[str, str | None], thresholds: Thresholds) -> pd.DataFrame:
    """Return the rows of sites, or of months, without `chance`; none if there is one group."""
    grouped = units.groupby([units["case"].map(group_of).rename("group"), "label"])[thresholds.features]
    tables = {"difference": grouped.median(), "subjects": grouped.count()}
    stacked = {name: table.rename_axis(columns="feature").stack() for name, table in tables.items()}
    rows = pd.DataFrame(stacked).reset_index()
    rows = rows[(rows["subjects"] >= _MIN_PEOPLE) & rows["difference"].notna()]
    rows = rows if rows["group"].nunique() > 1 else rows[:0]
    return rows.assign(kind=kind, organ=rows["label"].map(dict(thresholds.organs)))


def described(drift: pd.DataFrame) -> dict[str, Any]:
    """Return what the report shows: a picture as a data URI, and the largest differences in words."""
    beyond = drift[drift["difference"].abs() > drift["chance"]]
    largest = beyond.loc[beyond["difference"].abs().sort_values(ascending=False, kind="stable").index[:_NAMED]]
    words = [
        f"{row.kind} {row.group}: {row.organ}, {row.feature}: {row.difference:+.2f} spreads "
        f"({row.subjects} people; chance alone: up to {row.chance:.2f})"
        for row in largest.itertuples()
    ]
    file = BytesIO()
    _figure(drift).savefig(file, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None})
    picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"picture": picture, "largest": words, "beyond": len(beyond), "all": len(drift)}


def _figure(drift: pd.DataFrame) -> Figure:
    """Draw the organs' features with the largest differences, a column per site or month."""
    from matplotlib.figure import Figure  # here: only for reports with drift

    table = drift.assign(row=drift["organ"] + ", " + drift["feature"]).pivot_table(
        index="row", columns=["kind", "group"], values="difference", sort=False
    )
    table = table.loc[table.abs().max(axis=1).sort_values(ascending=False, kind="stable").index[:_SHOWN]]
    figure = Figure(figsize=(3 + min(0.3 * len(table.columns), 20), 1.5 + 0.22 * len(table)))
    axes = figure.add_subplot()
    shown = axes.imshow(table, cmap="RdBu_r", vmin=-_FULL_COLOUR, vmax=_FULL_COLOUR, aspect="auto")
    axes.set_yticks(range(len(table)), [name.replace("_", " ") for name in table.index], fontsize=8)
    axes.set_xticks(range(len(table.columns)), [group for _, group in table.columns], fontsize=8, rotation=90)
    figure.colorbar(shown, label="median, in spreads from the cohort's", extend="both")
    return figure
