"""Tables that grow with every finished case of an evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts.common.case_table import Rows, cell, read_lines, read_rows, write_lines, write_rows
from scripts.common.ranks import is_rank0
from scripts.inference.case_handler import CaseHandler, CaseRecords, gather_cases, record_case


class TableHandler(CaseHandler):
    """Base of handlers that write a row per case.

    Rank 0 rewrites the file after each of its cases, so that a killed run keeps the finished ones, and adds the cases
    of the other ranks at the end of the epoch. Rows of other cases that earlier runs wrote are kept if the evaluator
    says `keep_earlier`, as `scripts.inference.evaluator.CaseEvaluator` does.

    Args:
        path: the table; None for none.
        columns: those after `case`, keys of a row.
        decimals: of numbers that are not integers.

    Raises:
        InputError: when the run starts, if the table of earlier runs is damaged or has other columns.
    """

    def __init__(self, path: Path | None, columns: Sequence[str], *, decimals: int) -> None:
        super().__init__()
        self.path, self.columns, self.decimals = path, tuple(columns), decimals
        self._rows: Rows = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        engine.add_event_handler(Events.STARTED, self._open)
        super().attach(engine)

    def _open(self, engine: Engine) -> None:
        """Read the rows that are kept, and write them, or the head of an empty table."""
        self._rows = {}
        if self.path is not None and getattr(engine, "keep_earlier", False) and is_rank0():
            self._rows = self._read()

    def _read(self) -> Rows:
        return read_rows(self.path, self.columns)

    def _reset(self) -> None:
        super()._reset()
        self._write({})

    def add(self, case: str, row: Mapping[str, Any], *, source: str) -> None:
        """Record a case and write its row.

        Args:
            case: name of the case.
            row: column to value; other keys are left out.
            source: file that the case was read from.

        Raises:
            InputError: another file has the same case name, or the disk is full.
        """
        record_case(self._cases, case, source=source, value=row)
        self._write({case: (source, row)})

    def _finish(self, _: Engine) -> CaseRecords:
        """Add the cases of the other ranks."""
        cases = gather_cases(self._cases)
        if len(cases) > len(self._cases):
            self._write(cases)
        return cases

    def _write(self, cases: CaseRecords) -> None:
        """Add rows and write the whole table under a temporary name, then rename it."""
        if self.path is not None and is_rank0():
            rows = {case: self._cells(row) for case, (_, row) in cases.items()}
            self._save({**self._rows, **rows})
            self._rows |= rows

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        return [cell(row[name], decimals=self.decimals) for name in self.columns]

    def _save(self, rows: Rows) -> None:
        write_rows(self.path, self.columns, rows)


class LongTableHandler(TableHandler):
    """Base of handlers that write several rows per case; `add` takes a list of them, which replaces earlier ones."""

    def _read(self) -> dict[str, list[list[str]]]:
        rows: dict[str, list[list[str]]] = {}
        for case, *cells in read_lines(self.path, self.columns):
            rows.setdefault(case, []).append(cells)
        return rows

    def _cells(self, row: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        return [super(LongTableHandler, self)._cells(one) for one in row]

    def _save(self, rows: Mapping[str, list[list[str]]]) -> None:
        lines = [[case, *cells] for case, several in sorted(rows.items()) for cells in several]
        write_lines(self.path, self.columns, lines)
