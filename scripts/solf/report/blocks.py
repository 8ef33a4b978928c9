"""Blocks of a fixed number of cases of the table of decisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scripts.common.errors import InputError

DECISIONS = ("keep", "reject", "drop")
MAX_LABEL = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Block:
    """The decisions about C cases with N labels and F voting features.

    Attributes:
        names: of the cases, ascending.
        starts: (C + 1,), the first row of each case, and N.
        labels: (N,) label ids.
        organs: (N,) their names.
        values: (N, F) features.
        percentiles: (N, F), 0 to 100.
        votes: (N,) features outside.
        decisions: (N,) uint8, indices into DECISIONS.
        rejected: (N,) bool; in a dropped case the labels with enough votes.
        reasons: (N,) texts, "" for none.
    """

    names: list[str]
    starts: np.ndarray
    labels: np.ndarray
    organs: np.ndarray
    values: np.ndarray
    percentiles: np.ndarray
    votes: np.ndarray
    decisions: np.ndarray
    rejected: np.ndarray
    reasons: np.ndarray


def read_blocks(chunks: Iterable[pd.DataFrame], *, features: Sequence[str], votes: int, cases: int) -> Iterator[Block]:
    """Regroup chunks of whole cases into blocks, so that the report does not depend on the size of the chunks.

    Args:
        chunks: the table of decisions, in order of case.
        features: those that vote.
        votes: number of features outside that rejects a label.
        cases: number of cases in each block but the last.

    Raises:
        InputError: columns are missing, cases are not in ascending order or are split between chunks, a label or a
            decision is unknown.
    """
    columns = ["case", "label", "organ", *features, *(f"{f}_percentile" for f in features)]
    columns += ["votes", "decision", "reason"]
    held, count = [], 0
    for names, chunk in _in_order(chunks, columns):
        held.append(chunk)
        count += len(names)
        if count >= cases:
            table = pd.concat(held, ignore_index=True)
            starts, whole = _starts(table), count - count % cases
            for first in range(0, whole, cases):
                yield _block(table.iloc[starts[first] : starts[first + cases]], features, votes)
            held, count = [table.iloc[starts[whole] :]], count - whole
    if count:
        yield _block(pd.concat(held, ignore_index=True), features, votes)


def _in_order(chunks: Iterable[pd.DataFrame], columns: Sequence[str]) -> Iterator[tuple[Sequence[str], pd.DataFrame]]:
    """Yield the names of the cases and the columns of each chunk that has rows."""
    last = None
    for chunk in chunks:
        if missing := [name for name in columns if name not in chunk]:
            raise InputError(f"the table of decisions lacks {', '.join(missing)}; write it with these thresholds.")
        if len(chunk):
            names = list(chunk["case"].iloc[_starts(chunk)[:-1]])
            for before, after in zip([last, *names[:-1]], names, strict=True):
                if before is not None and not before < after:
                    raise InputError(f"case {after!r} comes after {before!r}; give whole cases, in order of name.")
            last = names[-1]
            yield names, chunk.loc[chunk["decision"] != "missing", list(columns)]


def _starts(table: pd.DataFrame) -> np.ndarray:
    """Return the first row of each case, and the number of rows."""
    case = table["case"].to_numpy(dtype=object)
    return np.concatenate([[0], np.flatnonzero(case[1:] != case[:-1]) + 1, [len(case)]])


def _block(table: pd.DataFrame, features: Sequence[str], votes: int) -> Block:
    labels, starts = table["label"].to_numpy(), _starts(table)
    if labels.min() < 0 or labels.max() > MAX_LABEL:
        raise InputError(
            f"the table of decisions holds labels {labels.min()} to {labels.max()}, need 0 to {MAX_LABEL}."
        )
    texts = table["decision"].to_numpy(dtype=object)
    decisions = np.full(len(table), len(DECISIONS), dtype=np.uint8)
    for code, text in enumerate(DECISIONS):
        decisions[texts == text] = code
    if (decisions == len(DECISIONS)).any():
        text = texts[decisions == len(DECISIONS)][0]
        raise InputError(f"the table of decisions holds {text!r}: a decision is one of {', '.join(DECISIONS)}.")
    counted = table["votes"].to_numpy()
    return Block(
        names=[str(name) for name in table["case"].iloc[starts[:-1]]],
        starts=starts,
        labels=labels.astype(np.int64),
        organs=table["organ"].to_numpy(dtype=object),
        values=table[list(features)].to_numpy(dtype=float),
        percentiles=table[[f"{feature}_percentile" for feature in features]].to_numpy(dtype=float),
        votes=counted,
        decisions=decisions,
        rejected=(decisions == 1) | ((decisions == 2) & (counted >= votes)),
        reasons=table["reason"].fillna("").to_numpy(dtype=object),
    )
