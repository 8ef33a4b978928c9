"""What the report counts, chunk by chunk of the table of decisions: organs, histograms, cases, rejected labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from scripts.common.errors import InputError

BINS = 48
REACH = 0.75  # of the distance between the thresholds is shown on either side of them
DIGITS = 4


@dataclass(frozen=True)
class Limits:
    """The thresholds of L organs and F voting features, (L, F) arrays; infinite where there is none.

    Attributes:
        features: names of the voting features.
        votes: number of features outside that rejects a label.
        labels: (L,) ids, ascending.
        organs: their names.
        subjects: (L,), to how many subjects the thresholds were fitted.
        low: values below are outside.
        high: values above are outside.
        median: of the cohort, NaN where unknown.
    """

    features: list[str]
    votes: int
    labels: np.ndarray
    organs: list[str]
    subjects: np.ndarray
    low: np.ndarray
    high: np.ndarray
    median: np.ndarray

    @classmethod
    def read(cls, thresholds: Mapping[str, Any]) -> Limits:
        """Read the content of `thresholds.json`.

        Raises:
            InputError: it lacks `features`, `votes` or `organs`.
        """
        if missing := [key for key in ("features", "votes", "organs") if key not in thresholds]:
            raise InputError(f"the thresholds lack {', '.join(missing)}; give the content of thresholds.json.")
        features, about = list(thresholds["features"]), {int(k): organ for k, organ in thresholds["organs"].items()}
        labels = sorted(about)
        tables = {}
        for name, nothing in {"low": -np.inf, "high": np.inf, "median": np.nan}.items():
            found = [[about[label].get(feature, {}).get(name) for feature in features] for label in labels]
            values = np.array(found, dtype=float).reshape(len(labels), len(features))  # None becomes NaN
            tables[name] = np.where(np.isnan(values), nothing, values)
        names = [str(about[label].get("organ", label)) for label in labels]
        subjects = np.array([about[label].get("subjects", 0) for label in labels], dtype=int)
        return cls(features, int(thresholds["votes"]), np.array(labels, dtype=int), names, subjects, **tables)

    @cached_property
    def width(self) -> np.ndarray:
        """Distance between the thresholds; if there is only one, twice its distance from the median; else NaN."""
        with np.errstate(invalid="ignore"):
            both = self.high - self.low
            alone = 2 * np.abs(np.where(np.isfinite(self.low), self.low, self.high) - self.median)
        width = np.where(np.isfinite(both), both, alone)
        flat = np.fmax(np.abs(self.median), 1e-12)  # of equal thresholds, as of a count that never varies
        return np.where(np.isfinite(width), np.where(width > 0, width, flat), np.nan)

    def rows(self, labels: np.ndarray) -> np.ndarray:
        """Return the rows of label ids.

        Raises:
            InputError: an id has no row.
        """
        rows = np.searchsorted(self.labels, labels).clip(max=len(self.labels) - 1)
        if (unknown := labels[self.labels[rows] != labels]).size:
            raise InputError(f"the thresholds lack label {unknown[0]}; give those that the decisions were made with.")
        return rows

    def margins(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return how far labels lie outside (positive) or inside (negative) of what rejects them.

        Each feature lies outside its nearer threshold by some share of the distance between the two; the result is the
        `votes`-th largest of these shares. By so much the thresholds would have to be wider, or narrower, for the
        other decision.

        Args:
            rows: (N,).
            values: (N, F); undefined ones count as infinitely far inside.
        """
        with np.errstate(invalid="ignore"):
            beyond = np.fmax(self.low[rows] - values, values - self.high[rows]) / self.width[rows]
        beyond = np.sort(np.where(np.isnan(beyond), -np.inf, beyond), axis=1)
        return beyond[:, max(-self.votes, -beyond.shape[1])]


class Summary:
    """Counts of the table of decisions.

    Args:
        limits: the thresholds.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        names = ("labels", "rejected", "missing")
        self.counts = {name: np.zeros(len(limits.labels), dtype=np.int64) for name in names}
        self.outside = np.zeros(limits.low.shape, dtype=np.int64)
        self.histograms = np.zeros((2, *limits.low.shape, BINS + 2), dtype=np.int64)
        self._ordinary = pd.DataFrame(columns=["case", "label", "distance"])
        self._cases: list[pd.DataFrame] = []
        self._listed: list[pd.DataFrame] = []

    def add(self, table: pd.DataFrame) -> None:
        """Count whole cases, which follow those already added.

        Args:
            table: `case`, `label`, `decision`, `reason`, `margin` (of `Limits.margins`) and the voting features.
        """
        limits, rows = self.limits, self.limits.rows(table["label"].to_numpy())
        values = table[limits.features].to_numpy(dtype=float)
        decision = table["decision"].to_numpy(dtype=object)
        present, rejected = decision != "missing", decision == "reject"
        masks = {"labels": present, "rejected": rejected, "missing": ~present}
        for name, mask in masks.items():
            self.counts[name] += np.bincount(rows[mask], minlength=len(limits.labels))
        outside = (values < limits.low[rows]) | (values > limits.high[rows])
        np.add.at(self.outside, rows, outside)
        self._count_bins(rows, values, rejected)
        self._add_ordinary(table[decision == "keep"], rows[decision == "keep"], values[decision == "keep"])
        self._add_cases(table.assign(**masks))
        self._listed.append(table.loc[rejected | ~present, ["case", "label", "decision", "margin", "reason"]])

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where the histograms start and stop, (L, F)."""
        limits, half = self.limits, self.limits.width / 2
        low = np.where(np.isfinite(limits.low), limits.low, limits.median - half)
        high = np.where(np.isfinite(limits.high), limits.high, limits.median + half)
        return low - REACH * limits.width, high + REACH * limits.width

    def _count_bins(self, rows: np.ndarray, values: np.ndarray, rejected: np.ndarray) -> None:
        start, stop = (edge[rows] for edge in self.edges())
        known = np.isfinite(values) & np.isfinite(start)
        at, column = np.nonzero(known)
        place = np.floor((values - start)[known] / (stop - start)[known] * BINS).clip(-1, BINS).astype(int) + 1
        np.add.at(self.histograms, (rejected[at].astype(int), rows[at], column, place), 1)

    def _add_ordinary(self, table: pd.DataFrame, rows: np.ndarray, values: np.ndarray) -> None:
        """Remember the kept label of each organ whose features are nearest to the organ's medians."""
        distance = (np.abs(values - self.limits.median[rows]) / self.limits.width[rows]).max(axis=1, initial=0)
        found = pd.DataFrame({"case": table["case"], "label": table["label"], "distance": distance}).dropna()
        both = found if self._ordinary.empty else pd.concat([self._ordinary, found])
        self._ordinary = both.sort_values("distance", kind="stable").drop_duplicates("label")

    def _add_cases(self, table: pd.DataFrame) -> None:
        counted = table.assign(dropped=table["decision"] == "drop")
        cases = counted.groupby("case", sort=False)[["labels", "rejected", "missing", "dropped"]].sum()
        worst = table[table["rejected"]].sort_values("margin", ascending=False, kind="stable").drop_duplicates("case")
        farthest = worst.set_index("case")[["label", "margin"]].rename(columns={"label": "worst"})
        cases = cases.join(farthest).fillna({"worst": 0, "margin": 0}).astype({"worst": int})
        self._cases.append(cases.reset_index())

    @property
    def ordinary(self) -> dict[int, str]:
        """Label id to the case whose organ is the most ordinary."""
        return dict(zip(self._ordinary["label"].astype(int), self._ordinary["case"], strict=True))

    @cached_property
    def cases(self) -> pd.DataFrame:
        """A row per case: numbers of its labels, whether it is dropped, and its label that is farthest outside."""
        return pd.concat(self._cases, ignore_index=True) if self._cases else pd.DataFrame()

    @property
    def number_of_cases(self) -> int:
        """How many cases were added so far."""
        return sum(map(len, self._cases))

    def rejected_of(self, cases: Collection[str]) -> dict[str, set[int]]:
        """Return the rejected labels of some cases."""
        found: dict[str, set[int]] = {}
        for table in self._listed:
            some = table[table["case"].isin(cases) & (table["decision"] == "reject")]
            for case, label in zip(some["case"], some["label"], strict=True):
                found.setdefault(case, set()).add(int(label))
        return found

    def listed(self) -> dict[str, list[Any]]:
        """Return the columns of all rejected labels and missing organs; `row` is that of the case."""
        table = pd.concat(self._listed) if self._listed else pd.DataFrame(columns=["case", "label"])
        place = {case: row for row, case in enumerate(self.cases.get("case", ()))}
        return columns(table.assign(row=[place[case] for case in table["case"]]).drop(columns="case"))

    def totals(self) -> dict[str, int]:
        """Return the numbers of the overview."""
        counts = {name: int(values.sum()) for name, values in self.counts.items()}
        some = {name: int((self.cases.get(name, pd.Series(dtype=int)) > 0).sum()) for name in ("rejected", "dropped")}
        return {
            "cases": len(self.cases),
            **counts,
            "cases_with_rejections": some["rejected"],
            "dropped": some["dropped"],
        }

    def organs(self) -> list[dict[str, Any]]:
        """Return a row per organ that occurs or has thresholds."""
        limits, rows = self.limits, []
        for row in np.flatnonzero(self.counts["labels"] + self.counts["missing"] + limits.subjects):
            counts = {name: int(values[row]) for name, values in self.counts.items()}
            about = {
                "label": int(limits.labels[row]),
                "organ": limits.organs[row],
                "subjects": int(limits.subjects[row]),
            }
            rows.append({**about, **counts, "outside": self.outside[row].tolist()})
        return rows

    def distributions(self) -> dict[str, list[dict[str, Any]]]:
        """Return the histograms of each organ by label id, one per feature; a missing threshold is null."""
        start, stop = self.edges()
        tables = {name: getattr(self.limits, name) for name in ("low", "median", "high")}
        tables |= {"start": start, "stop": stop}
        return {
            str(self.limits.labels[row]): [
                {name: plain(table[row, column]) for name, table in tables.items()}
                | {kind: self.histograms[n, row, column].tolist() for n, kind in enumerate(("kept", "rejected"))}
                for column in range(len(self.limits.features))
            ]
            for row in np.flatnonzero(self.counts["labels"])
        }


def plain(values: np.ndarray | float) -> Any:
    """Return numbers with DIGITS digits as plain values; those that are not finite become None."""
    array = np.asarray(values, dtype=float)
    known = np.isfinite(array)
    sizes = np.where(known & (np.abs(array) > 1e-18), np.abs(array), 1.0)
    scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(sizes)))
    rounded = np.round(np.where(known, array, 0.0) * scale) / scale
    return np.where(known, rounded, None).tolist()


def columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Return the columns of a table as plain values."""
    numbers = {name: plain(table[name]) for name in table.select_dtypes("float")}
    return {name: numbers.get(name) or table[name].tolist() for name in table}
