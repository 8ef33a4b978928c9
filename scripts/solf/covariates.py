"""Covariates of people, such as sex, age, height and site: reading their table, and coding them as numbers."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from scripts.common.errors import InputError, raise_all
from scripts.common.names import listed, printable

SITE, DATE = "site", "date"
MAX_COLUMNS = 32
"""Columns of a design, which the weights of a filter have room for."""

_MIN_PEOPLE = 20  # of a level, and of a fit
_PEOPLE_PER_COLUMN = 10
_EMPTY = ("", "na", "n/a", "nan")
_LISTED_CASES = 5
logger = logging.getLogger(__name__)

Row = Mapping[str, str]
"""Covariate to text of one person, "" where empty."""


@dataclass(frozen=True)
class Covariates:
    """Covariates of a cohort.

    Attributes:
        source: the file, for messages.
        rows: case to its covariates, `date` included.
        coding: of `learn_coding`; empty if the table was read for cleaning.
    """

    source: str
    rows: Mapping[str, Row]
    coding: Mapping[str, Mapping[str, Any]]

    @property
    def groups(self) -> list[str]:
        """Which of `site` and `date` the table has."""
        own = next(iter(self.rows.values()))
        return [name for name in (SITE, DATE) if name in own]


def read_covariates(
    source: str | Path, *, cases: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> Covariates | None:
    """Read a table of covariates, and check it for a fit if `columns` are given.

    Args:
        source: CSV file (UTF-8) with `case` and a column per covariate; "" for none. `site` is text, `date` an ISO 8601
            date; in other columns, if at least half of the entries are numbers, all have to be. Empty cells, `NA` and
            `nan` are unknown.
        cases: `{"case": name, ...}` of the cohort; other rows are left out.
        columns: of a fit: which covariates predict features; empty for all but `case` and `date`.

    Raises:
        InputError: the file cannot be read, or has faults, all of which are named: no `case`, columns or cases that
            repeat, no case in common with the cohort, a date that is none, and for a fit, unknown columns, text in a
            column of numbers, too many levels or too few people.
    """
    if not source:
        return None
    where, names = printable(source), [case["case"] for case in cases]
    head, entries = _read(Path(source), where)
    rows = {row.get("case", ""): {k: v for k, v in row.items() if k != "case"} for row in entries}
    problems = [*_structure_problems(head, entries, names), *_date_problems(entries)]
    common = {name: rows[name] for name in names if name in rows}
    coding: dict[str, dict[str, Any]] = {}
    if columns is not None:
        used = list(columns) or [name for name in head if name not in ("case", DATE)]
        if unknown := [name for name in used if name not in head or name in ("case", DATE)]:
            problems.append(f"covariate_columns names {listed(unknown)}, the table has {listed(head)}")
        coding = learn_coding([common[name] for name in sorted(common)], [name for name in used if name not in unknown])
        problems += _number_problems(entries, coding)
        problems += _coding_problems(coding, list(common.values()), covariates=len(used)) if common else []
    raise_all(problems, f"covariates {where}", "correct the table or the settings")
    return Covariates(where, common, coding)


def _read(path: Path, where: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the head and the rows of a CSV file; what is empty is "", and surplus cells have the key ""."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval="", strict=True)
            head = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = head
            entries = [{k: _cell(v) for k, v in row.items()} for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{where}: cannot be read ({error}); give a CSV with case and covariates.") from error
    return head, entries


def _cell(text: str | list[str]) -> str:
    text = text.strip() if isinstance(text, str) else "surplus"
    return "" if text.lower() in _EMPTY else text


def _structure_problems(head: Sequence[str], entries: Sequence[Row], names: Sequence[str]) -> list[str]:
    if "case" not in head:
        return [f"has no column case, but {listed(head) or 'nothing'}; separate columns by commas"]
    problems = [f"the column {name!r} repeats" for name, count in Counter(head).items() if count > 1]
    problems += [f"row {n} has more cells than columns" for n, row in enumerate(entries, start=2) if "" in row]
    counts = Counter(row["case"] for row in entries)
    problems += [f"the case {name!r} has {count} rows" for name, count in counts.items() if count > 1]
    if not counts.keys() & set(names):
        few = f"{listed(list(counts)[:3]) or 'none'}; the cohort's are such as {listed(names[:3])}"
        problems.append(f"has no case of the cohort: its cases are such as {few}")
    return problems


def _date_problems(entries: Iterable[Row]) -> list[str]:
    dates = ((n, row.get(DATE, "")) for n, row in enumerate(entries, start=2))
    wrong = ((n, text) for n, text in dates if text and month(text) is None)
    return [f"row {n}: date is {text!r}, not a date such as 2026-11-21" for n, text in wrong]


def month(text: str) -> str | None:
    """Return the month of an ISO 8601 date as `2026-11`; None if it is none."""
    with suppress(ValueError):
        return f"{datetime.fromisoformat(text):%Y-%m}"
    return None


def _number(text: str) -> float:
    """Return the finite number that a text holds, or NaN."""
    with suppress(ValueError):
        value = float(text)
        return value if math.isfinite(value) else math.nan
    return math.nan


def learn_coding(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Learn how covariates become numbers.

    Args:
        rows: of the cohort.
        columns: names of the covariates.

    Returns:
        Covariate, in order of name, to `mean`, `sd`, `low` and `high` of its numbers, or to `levels`, its texts that
        at least 20 people have, the most frequent first, against which the others are coded.
    """
    coding: dict[str, dict[str, Any]] = {}
    for name in sorted(columns):  # as in the weights
        texts = [row[name] for row in rows if row[name]]
        numbers = np.array([_number(text) for text in texts])
        numbers = numbers[~np.isnan(numbers)]
        if name != SITE and len(numbers) and 2 * len(numbers) >= len(texts):
            coding[name] = {"mean": float(numbers.mean()), "sd": float(numbers.std()) or 1.0}
            coding[name] |= {"low": float(numbers.min()), "high": float(numbers.max())}
        else:
            counts = Counter(sorted(texts)).most_common()
            coding[name] = {"levels": [text for text, count in counts if count >= _MIN_PEOPLE]}
    return coding


def _number_problems(entries: Iterable[Row], coding: Mapping[str, Mapping[str, Any]]) -> list[str]:
    numeric = [name for name, code in coding.items() if "mean" in code]
    cells = ((n, name, row[name]) for n, row in enumerate(entries, start=2) for name in numeric if name in row)
    return [f"row {n}: {name} is {text!r}, not a number" for n, name, text in cells if text and np.isnan(_number(text))]


def _coding_problems(coding: Mapping[str, Mapping[str, Any]], rows: Sequence[Row], *, covariates: int) -> list[str]:
    """Describe why a fit is impossible: no covariate, no usable level, too many columns or too few people."""
    if not covariates:
        return ["has no covariates; add columns such as sex, age or height"]
    count = len(design_names(coding))
    empty = [name for name, code in coding.items() if not code.get("levels", True)]
    problems = [f"no value of {name} is that of {_MIN_PEOPLE} people; leave it out" for name in empty]
    if count > MAX_COLUMNS:
        problems.append(
            f"the covariates make {count} columns, at most {MAX_COLUMNS} can be used: name fewer in covariate_columns"
        )
    needed, known = max(_MIN_PEOPLE, _PEOPLE_PER_COLUMN * count), len(rows) - sum(map(bool, design(coding, rows)[1]))
    if not problems and known < needed:
        problems.append(f"{known} people of the cohort have all of {listed(list(coding))}, {needed} are needed")
    return problems


def check_coded(covariates: Covariates, coding: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a table that a filter with this coding cannot use.

    Raises:
        InputError: columns of the fit are absent, or hold text instead of numbers; all are named.
    """
    has = next(iter(covariates.rows.values()))
    problems = [f"has no column {name}, which the filter was fitted with" for name in coding if name not in has]
    numeric = [name for name, code in coding.items() if "mean" in code and name in has]
    cells = ((case, name, row[name]) for case, row in covariates.rows.items() for name in numeric)
    problems += [
        f"case {case}: {name} is {text!r}, not a number"
        for case, name, text in cells
        if text and np.isnan(_number(text))
    ]
    raise_all(problems, f"covariates {covariates.source}", "correct the table")


def design_names(coding: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the columns of a design, such as `age` and `sex=male`, after the constant."""
    names = ["constant"]
    for name, code in coding.items():
        names += [name] if "mean" in code else [f"{name}={level}" for level in code["levels"][1:]]
    return names


def design(coding: Mapping[str, Mapping[str, Any]], rows: Sequence[Row | None]) -> tuple[np.ndarray, list[str]]:
    """Code the covariates of people.

    Args:
        coding: of `learn_coding`.
        rows: of N people, None for no row.

    Returns:
        (N, C), a column per name of `design_names`, NaN for people of whom a covariate is unknown, a level that the fit
        did not know, or more than a standard deviation beyond the values of the fit; and why, "" for the others.
    """
    matrix, problems = np.full((len(rows), len(design_names(coding))), np.nan), []
    for n, row in enumerate(rows):
        problems.append("no row" if row is None else ", ".join(filter(None, (_why(row, *c) for c in coding.items()))))
        if not problems[-1]:
            cells = [1.0]
            for name, code in coding.items():
                if "mean" in code:
                    cells.append((float(row[name]) - code["mean"]) / code["sd"])
                else:
                    cells += [float(row[name] == level) for level in code["levels"][1:]]
            matrix[n] = cells
    return matrix, problems


def _why(row: Row, name: str, code: Mapping[str, Any]) -> str:
    """Describe why a covariate cannot be used; "" if it can."""
    if not (text := row.get(name, "")):
        return f"no {name}"
    if "levels" in code:
        return "" if text in code["levels"] else f"unknown {name} {text}"
    is_inside = code["low"] - code["sd"] <= _number(text) <= code["high"] + code["sd"]
    return "" if is_inside else f"{name} {text} is not from {code['low']:g} to {code['high']:g}"


def add_covariates(cases: Sequence[Mapping[str, Any]], covariates: Covariates | None) -> list[dict[str, Any]]:
    """Add to each case its covariates as text, for `scripts.solf.filter.LabelFilter`; "" without a table.

    They are part of the case, so that a journal processes a case again if its own covariates change.
    """
    if covariates is None:
        return [{**case, "covariates": ""} for case in cases]
    rows = covariates.rows
    return [{**case, "covariates": json.dumps(rows.get(case["case"]), sort_keys=True)} for case in cases]


def warn_of_unknown(
    covariates: Covariates, coding: Mapping[str, Mapping[str, Any]], cases: Sequence[Mapping[str, Any]]
) -> None:
    """Name in one warning the cases that are judged without covariates."""
    names = [case["case"] for case in cases]
    reasons = design(coding, [covariates.rows.get(name) for name in names])[1]
    found = [f"{name} ({why})" for name, why in zip(names, reasons, strict=True) if why]
    if found:
        shown = ", ".join([*map(printable, found[:_LISTED_CASES]), "..."][: len(found)])
        logger.warning(
            "covariates: %d of %d cases are judged by the thresholds without covariates: %s",
            len(found),
            len(names),
            shown,
        )
