"""Contacts of labels that hardly any person of the cohort has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

MAX_CONTACT_LABELS = 1024
"""Contacts are not measured in maps, and not fitted with label tables, of more labels: their square grows large."""

MIN_TOGETHER = 100
"""Cases with both organs that a pair needs, for the share of them in which they touch."""

UNUSUAL_PERCENT = 1.0
"""Contacts that less of these cases have are unusual."""


def pairs_as_text(labels: np.ndarray, touching: np.ndarray) -> str:
    """Return the pairs of labels that touch, such as `2 66,3 66`.

    Args:
        labels: (N,), ascending.
        touching: (N, N); (0, 0) if it was not measured.
    """
    return ",".join(f"{labels[one]} {labels[other]}" for one, other in np.argwhere(np.triu(touching, 1)))


def partners(text: str) -> dict[int, list[int]]:
    """Return the labels that each label of a case touches, given `pairs_as_text`.

    >>> partners("2 66,3 66")
    {2: [66], 66: [2, 3], 3: [66]}
    """
    found: dict[int, list[int]] = {}
    for pair in text.split(",") if text else ():
        one, other = map(int, pair.split())
        found.setdefault(one, []).append(other)
        found.setdefault(other, []).append(one)
    return found


def fit_contacts(tables: Iterable[pd.DataFrame], organs: Mapping[int, str]) -> np.ndarray:
    """Count how often organs touch.

    Args:
        tables: with `case`, `label` and `contacts`, the ids that a label touches; each case is in one of them.
        organs: label id to name.

    Returns:
        (L, L), in percent of the cases that have both organs; NaN where they are less than `MIN_TOGETHER`. (0, 0) for
        more than `MAX_CONTACT_LABELS` organs.
    """
    if len(organs) > MAX_CONTACT_LABELS:
        return np.zeros((0, 0))
    row_of = {label: row for row, label in enumerate(organs)}
    together, touching = np.zeros((2, len(organs), len(organs)))
    for table in tables:
        cases, _ = table["case"].factorize()
        has = np.zeros((cases.max(initial=-1) + 1, len(organs)), dtype=np.float32)
        has[cases, table["label"].map(row_of)] = 1
        together += has.T @ has
        for label, others in _touched(table):
            for other in others:
                touching[row_of[label], row_of[other]] += 1
    return np.where(together >= MIN_TOGETHER, 100 * touching / together.clip(min=1), np.nan)


def with_unusual_contacts(
    decisions: pd.DataFrame, table: pd.DataFrame, percent: np.ndarray, organs: Mapping[int, str]
) -> pd.DataFrame:
    """Name the organs that a label touches but of which less than `UNUSUAL_PERCENT` of the cohort's cases do.

    Args:
        decisions: with `case` and `label`.
        table: of the same labels, with `contacts`.
        percent: of `fit_contacts`.
        organs: label id to name.

    Returns:
        The decisions with `unusual_contacts`, names with commas between them; "" for none. It is no vote.
    """
    names, row_of = list(organs.values()), {label: row for row, label in enumerate(organs)}
    unusual = percent < UNUSUAL_PERCENT
    found = {}
    for (label, others), case in zip(_touched(table), table["case"], strict=True) if unusual.any() else ():
        rows = [row_of[other] for other in others if unusual[row_of[label], row_of[other]]]
        if rows:
            found[case, label] = ", ".join(names[row] for row in rows)
    keys = zip(decisions["case"], decisions["label"], strict=True)
    return decisions.assign(unusual_contacts=[found.get(key, "") for key in keys])


def _touched(table: pd.DataFrame) -> Iterator[tuple[int, list[int]]]:
    for label, text in zip(table["label"].tolist(), table["contacts"].tolist(), strict=True):
        yield label, [int(other) for other in text.split()]
