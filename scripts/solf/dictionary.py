"""The columns of every table of results: unit, type and definition, of `assets/columns.json`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from scripts.solf.thresholds import FEATURES

FEATURE = "<feature>"
"""Stands in `assets/columns.json` for each feature that may vote."""


class Column(NamedTuple):
    """What a column of a table holds.

    Attributes:
        unit: such as `mm3`; "" for none.
        type: `text`, `integer`, `number` or `boolean`.
        definition: a phrase.
    """

    unit: str
    type: str
    definition: str


@cache
def tables() -> dict[str, dict[str, Any]]:
    """Return what is declared of each table: `files`, `written_by`, `row`, `columns` and its `own` definitions."""
    return _declared()["tables"]


@cache
def columns_of(table: str) -> dict[str, Column]:
    """Return all columns that a table may have, in order.

    Args:
        table: key of `tables`.
    """
    own, found = tables()[table].get("own", {}), {}
    for name in tables()[table]["columns"]:
        column = Column(*(own[name] if name in own else _declared()["columns"][name]))
        found |= {name.replace(FEATURE, feature): column for feature in FEATURES} if FEATURE in name else {name: column}
    return found


@cache
def _declared() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "assets" / "columns.json").read_text(encoding="utf-8"))
