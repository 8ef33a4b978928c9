"""Running counts of the report: rejected labels per organ, and histograms of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from scripts.common.errors import InputError
from scripts.solf.report.blocks import MAX_LABEL, Block

LABELS = MAX_LABEL + 1
BINS = 60
REACH = 0.75  # of the distance between the thresholds is shown on either side of them


@dataclass(frozen=True)
class Limits:
    """The thresholds as (65536, F) arrays by label id, infinite where there is none.

    Attributes:
        features: names of the voting features.
        votes: number of features outside that rejects a label.
        organs: label id to name.
        subjects: label id to the number of subjects that the thresholds were fitted to.
        low: values below are outside.
        high: values above are outside.
        median: of the cohort, NaN where unknown.
    """

    features: list[str]
    votes: int
    organs: dict[int, str]
    subjects: dict[int, int]
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
        features, organs = list(thresholds["features"]), {int(k): organ for k, organ in thresholds["organs"].items()}
        bounds = {"low": -np.inf, "high": np.inf, "median": np.nan}
        tables = {name: np.full((LABELS, len(features)), nothing) for name, nothing in bounds.items()}
        for label, organ in organs.items():
            for column, feature in enumerate(features):
                for name, value in organ.get(feature, {}).items():
                    if value is not None and name in tables:
                        tables[name][label, column] = value
        names = {label: str(organ.get("organ", label)) for label, organ in organs.items()}
        subjects = {label: int(organ["subjects"]) for label, organ in organs.items() if "subjects" in organ}
        return cls(features, int(thresholds["votes"]), names, subjects, **tables)

    @cached_property
    def width(self) -> np.ndarray:
        """Distance between the thresholds; if there is only one, twice its distance from the median; else NaN."""
        with np.errstate(invalid="ignore"):
            both = self.high - self.low
            alone = 2 * np.abs(np.where(np.isfinite(self.low), self.low, self.high) - self.median)
        width = np.where(np.isfinite(both), both, alone)
        return np.where(np.isfinite(width) & (width > 0), width, np.nan)

    def excess(self, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return how far labels are outside: the largest distance to a threshold, over the thresholds' width.

        Args:
            labels: (N,) ids.
            values: (N, F) features; NaN counts as inside.
        """
        beyond = np.fmax(np.fmax(self.low[labels] - values, values - self.high[labels]), 0)
        width = self.width[labels]
        scale = np.where(np.isnan(width), np.fmax(np.abs(values), np.finfo(np.float32).tiny), width)
        return (beyond / scale).max(axis=1, initial=0)


class OrganCounts:
    """Counts, block by block, labels, rejections and values outside thresholds, and the range of each feature.

    Args:
        limits: the thresholds.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.names: dict[int, str] = dict(limits.organs)
        self.counts = {name: np.zeros(LABELS, dtype=np.int64) for name in ("labels", "rejected")}
        self.outside = np.zeros((LABELS, len(limits.features)), dtype=np.int64)
        self.least = np.full((LABELS, len(limits.features)), np.inf)
        self.most = np.full((LABELS, len(limits.features)), -np.inf)

    def add(self, block: Block) -> None:
        """Count the labels of a block."""
        labels = block.labels
        self.counts["labels"] += np.bincount(labels, minlength=LABELS)
        self.counts["rejected"] += np.bincount(labels[block.rejected], minlength=LABELS)
        outside = (block.values < self.limits.low[labels]) | (block.values > self.limits.high[labels])
        for column in range(outside.shape[1]):
            self.outside[:, column] += np.bincount(labels[outside[:, column]], minlength=LABELS)
        known = np.isfinite(block.values)
        np.minimum.at(self.least, labels, np.where(known, block.values, np.inf))
        np.maximum.at(self.most, labels, np.where(known, block.values, -np.inf))
        for label, row in zip(*np.unique(labels, return_index=True), strict=True):
            self.names.setdefault(int(label), str(block.organs[row]))

    def present(self) -> list[int]:
        """Return the label ids that occur."""
        return [int(label) for label in np.flatnonzero(self.counts["labels"])]

    def data(self) -> list[dict[str, Any]]:
        """Return a row per organ that occurs or has thresholds."""
        rows = []
        for label in sorted(set(self.present()) | set(self.limits.organs)):
            counts = {name: int(values[label]) for name, values in self.counts.items()}
            row = {"label": label, "organ": self.names[label], **counts, "outside": self.outside[label].tolist()}
            rows.append({**row, "subjects": self.limits.subjects.get(label)})
        return rows


class Histograms:
    """Histograms of kept and rejected labels for each feature and organ, counted block by block.

    The bins are of equal width and reach beyond the thresholds by REACH of their distance, as far as there are values;
    other values are counted as below or above. Without thresholds the bins cover all values.

    Args:
        organs: the counts of the same table, complete.
    """

    def __init__(self, organs: OrganCounts) -> None:
        self.limits, self.present = organs.limits, organs.present()
        self._row = np.zeros(LABELS, dtype=np.int64)
        self._row[self.present] = np.arange(len(self.present))
        self.start, self.stop = self._range(organs)
        self.counts = np.zeros((2, *self.start.shape, BINS + 2), dtype=np.int64)

    def _range(self, organs: OrganCounts) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the histograms, (organs present, F)."""
        limits, here = self.limits, self.present
        width, median = limits.width[here], limits.median[here]
        low, high = limits.low[here], limits.high[here]
        low = np.where(np.isfinite(low), low, median - width / 2)
        high = np.where(np.isfinite(high), high, median + width / 2)
        start = np.fmax(organs.least[here], low - REACH * width)
        stop = np.fmin(organs.most[here], high + REACH * width)
        start, stop = np.fmin(start, low), np.fmax(stop, high)  # the thresholds are always shown
        flat = ~(stop > start)
        stop = np.where(flat, start + np.fmax(np.abs(start) * 1e-3, 1e-6), stop)
        return start, stop

    def add(self, block: Block) -> None:
        """Count the labels of a block."""
        rows = self._row[block.labels]
        start, stop = self.start[rows], self.stop[rows]
        known = np.isfinite(block.values) & np.isfinite(start) & np.isfinite(stop)
        with np.errstate(invalid="ignore"):
            place = np.floor((block.values - start) / (stop - start) * BINS)
        place = np.where(block.values == stop, BINS - 1, place)
        bins = np.where(known, place.clip(-1, BINS), 0).astype(np.int64) + 1
        columns = np.broadcast_to(np.arange(bins.shape[1]), bins.shape)
        kinds = np.broadcast_to(block.rejected[:, None], bins.shape).astype(np.int64)
        at = (kinds[known], np.broadcast_to(rows[:, None], bins.shape)[known], columns[known], bins[known])
        flat = np.ravel_multi_index(at, self.counts.shape)
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(self.counts.shape)

    def data(self) -> dict[str, dict[str, Any]]:
        """Return the histograms with their thresholds by label id and feature; a missing threshold is null."""
        return {
            str(label): {name: self._one(row, column) for column, name in enumerate(self.limits.features)}
            for row, label in enumerate(self.present)
        }

    def _one(self, row: int, column: int) -> dict[str, Any]:
        label = self.present[row]
        names = ("low", "median", "high")
        numbers = {name: getattr(self.limits, name)[label, column] for name in names}
        numbers |= {"start": self.start[row, column], "stop": self.stop[row, column]}
        kept, rejected = self.counts[:, row, column]
        return {
            **{name: float(value) if np.isfinite(value) else None for name, value in numbers.items()},
            "kept": kept[1:-1].tolist(),
            "rejected": rejected[1:-1].tolist(),
            "below": int(kept[0] + rejected[0]),
            "above": int(kept[-1] + rejected[-1]),
        }
