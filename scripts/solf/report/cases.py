"""The report's index of cases: the numbers by which the page sorts and filters."""

from __future__ import annotations

from typing import Any

import numpy as np

from scripts.solf.report.blocks import Block
from scripts.solf.report.folder import packed, packed_json

_COLUMNS = {"labels": np.uint16, "rejected": np.uint16, "dropped": np.uint8, "worst": np.uint16, "excess": np.float32}


class CaseIndex:
    """Collects, block by block, a row per case; about 30 bytes and its name.

    Columns: `labels` and `rejected`, numbers of labels; `dropped`, 1 for a dropped case; `worst`, the rejected label
    that is farthest outside its thresholds, 0 for none; `excess`, how far (see `Limits.excess`).
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        self._rejected_labels: list[np.ndarray] = []

    def add(self, block: Block, excess: np.ndarray) -> None:
        """Add the cases of a block.

        Args:
            block: of cases that follow those already added.
            excess: (N,), how far each label is outside.
        """
        first = block.starts[:-1]
        excess = np.where(block.rejected, excess, -1.0)
        farthest = np.maximum.reduceat(excess, first)
        at_most = excess == np.repeat(farthest, np.diff(block.starts))
        rows = np.where(at_most, np.arange(len(excess)), len(excess))
        worst = block.labels[np.minimum.reduceat(rows, first)]
        columns = {
            "labels": np.diff(block.starts),
            "rejected": np.add.reduceat(block.rejected.astype(np.int64), first),
            "dropped": np.maximum.reduceat(block.decisions, first) == 2,
            "worst": np.where(farthest < 0, 0, worst),
            "excess": farthest.clip(0),
        }
        for name, values in columns.items():
            self._columns[name].append(values.astype(_COLUMNS[name]))
        self._rejected_labels.append(block.labels[block.rejected].astype(np.uint16))
        self.names += block.names

    def column(self, name: str) -> np.ndarray:
        """Return a column of all cases."""
        return np.concatenate([np.zeros(0, _COLUMNS[name]), *self._columns[name]])

    def case(self, row: int) -> dict[str, Any]:
        """Return one case."""
        return {"row": row, "case": self.names[row], **{name: self.column(name)[row].item() for name in _COLUMNS}}

    def worst(self, count: int) -> list[int]:
        """Return the cases with most rejected labels; ties are ordered by excess, then by name."""
        rejected, excess = self.column("rejected").astype(np.int64), self.column("excess")
        order = np.lexsort((-excess, -rejected))[:count]
        return [int(row) for row in order if rejected[row]]

    def totals(self) -> dict[str, int]:
        """Return the numbers of the overview."""
        rejected = self.column("rejected").astype(np.int64)
        return {
            "cases": len(self.names),
            "labels": int(self.column("labels").sum(dtype=np.int64)),
            "rejected": int(rejected.sum()),
            "cases_with_rejections": int((rejected > 0).sum()),
            "dropped": int(self.column("dropped").sum(dtype=np.int64)),
        }

    def data(self) -> dict[str, Any]:
        """Return the index for the page; `rejections` lists the rejected labels case by case."""
        rejections = np.concatenate([np.zeros(0, np.uint16), *self._rejected_labels])
        columns = {name: packed(self.column(name)) for name in _COLUMNS}
        return {"names": packed_json(self.names), **columns, "rejections": packed(rejections)}
