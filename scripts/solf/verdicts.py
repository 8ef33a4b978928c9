"""Verdicts of people about labels: reading their files, merging them, and letting them overrule the filter."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.common.errors import InputError, raise_all
from scripts.common.names import listed, listed_unknown, printable
from scripts.solf.tables import read_label_table

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("case", "label", "organ", "verdict", "reviewer", "reviewed_at", "comment")
"""Columns of a file of verdicts; `organ` and `comment` may be empty or left out."""
KEY = ["case", "label"]
_DECISIONS = {"accept": "keep", "reject": "reject"}
_REQUIRED = ("case", "label", "verdict", "reviewer", "reviewed_at")
_ADDED = ("verdict", "reviewer", "reviewed_at")
logger = logging.getLogger(__name__)


def read_verdicts(source: str | Path, *, label_table: str | Path = "") -> pd.DataFrame | None:
    """Read verdicts.

    Args:
        source: a CSV file with `COLUMNS`, or a folder of such files; "" for none. `verdict` is `accept` or `reject`,
            `label` an id, `reviewed_at` an ISO 8601 time with its zone.
        label_table: JSON file of the labels; "" for the 72 organs.

    Returns:
        `COLUMNS`, a row per case, label and reviewer, in this order: the latest verdict counts, among those of the same
        time the last one read, file by file in order of name. `label` is an int, `reviewed_at` a time in UTC. None
        without a source.

    Raises:
        InputError: a file cannot be read or lacks a column, the folder holds none, or rows are no verdicts about labels
            of the table. All such rows are named.
    """
    import pandas as pd  # not at the top: the filter imports this module, and starts faster without

    if not source:
        return None
    path, organs = Path(source), read_label_table(label_table)
    files = sorted(file for file in path.glob("*.csv") if not file.name.startswith(".")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{printable(path)}: holds no verdicts (.csv); give a file that the report saved.")
    tables = {file: read_text_table(file, required=_REQUIRED) for file in files}
    problems = [
        f"{printable(file)}, row {row}: {problem}"
        for file, table in tables.items()
        for row, problem in _problems(table, organs)
    ]
    raise_all(problems, f"verdicts {printable(path)}", "correct or delete these rows")
    rows = pd.concat([_parsed(table, organs) for table in tables.values()], ignore_index=True)
    rows = rows.sort_values("reviewed_at", kind="stable").drop_duplicates([*KEY, "reviewer"], keep="last")
    return rows.sort_values([*KEY, "reviewer"], ignore_index=True)


def read_text_table(path: str | Path, *, required: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file (UTF-8) as text without blanks around it; empty cells are "".

    Raises:
        InputError: the file cannot be read, or lacks a required column.
    """
    import pandas as pd  # as in `read_verdicts`

    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            table = pd.read_csv(file, dtype=str, keep_default_na=False).fillna("")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{printable(path)}: cannot be read ({error}); give a CSV with {listed(required)}.") from error
    if missing := [name for name in required if name not in table]:
        has = f"has the columns {', '.join(map(str, table))}"
        raise InputError(f"{printable(path)}: {has}; give {listed(missing)}, with commas between the columns.")
    return table.apply(lambda column: column.str.strip())


def _problems(table: pd.DataFrame, organs: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    """Yield (row of the file, what is wrong with it) of each row that is no verdict; the head is row 1."""
    for number, row in enumerate(table.to_dict("records"), start=2):
        organ = organs.get(label_id(row["label"]))
        checks = (
            (not row["case"], "has no case"),
            (organ is None, f"its label is {row['label']!r}, which the label table lacks"),
            (
                organ is not None and row.get("organ", "") not in ("", organ),
                f"its organ is {row.get('organ')!r}, but label {row['label']} is {organ}",
            ),
            (row["verdict"] not in _DECISIONS, f"its verdict is {row['verdict']!r}, not accept or reject"),
            (not row["reviewer"], "has no reviewer"),
            (
                _time(row["reviewed_at"]) is None,
                f"its reviewed_at is {row['reviewed_at']!r}, not a time with its zone such as 2026-11-21T20:15:00Z",
            ),
        )
        yield from ((number, problem) for wrong, problem in checks if wrong)


def label_id(text: str) -> int:
    """Return a label id that is written as a whole number, perhaps with a point as in `5.0`; else -1."""
    with suppress(ValueError):
        return int(text) if text.isdecimal() else int(value) if (value := float(text)).is_integer() else -1
    return -1


def _time(text: str) -> datetime | None:
    """Return a time in UTC; None if the text is no ISO 8601 time with its zone."""
    with suppress(ValueError, OverflowError):
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else None
    return None


def _parsed(table: pd.DataFrame, organs: Mapping[int, str]) -> pd.DataFrame:
    import pandas as pd  # as in `read_verdicts`

    labels = table["label"].map(label_id).astype("int64")
    times = pd.to_datetime(table["reviewed_at"].map(_time), utc=True)
    filled = table.reindex(columns=list(COLUMNS), fill_value="")
    return filled.assign(label=labels, organ=labels.map(dict(organs)), reviewed_at=times)


def consensus(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Merge the verdicts of several reviewers by majority.

    Args:
        verdicts: of `read_verdicts`.

    Returns:
        A row per case and label: `case`, `label`, `organ`, `verdict`, "" for a tie, `reviewer`, the names of the
        majority, and `reviewed_at`, the latest of their times as ISO 8601 text.
    """
    rows = verdicts.assign(balance=verdicts["verdict"].map({"accept": 1, "reject": -1}).astype("int64"))
    rows["majority"] = rows.groupby(KEY)["balance"].transform("sum").clip(-1, 1).map({1: "accept", -1: "reject", 0: ""})
    followed = rows[(rows["verdict"] == rows["majority"]) | (rows["majority"] == "")]
    merged = followed.groupby(KEY, as_index=False).agg(
        organ=("organ", "first"),
        verdict=("majority", "first"),
        reviewer=("reviewer", ", ".join),
        reviewed_at=("reviewed_at", "max"),
    )
    return merged.assign(reviewed_at=merged["reviewed_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"))


def add_verdicts(cases: Sequence[Mapping[str, Any]], verdicts: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Add to each case its verdicts as text, for `scripts.solf.filter.LabelFilter`; "" without any.

    They are part of the case, so that a journal processes a case again if its own verdicts change. Ties, and verdicts
    about cases that are not listed, are named in warnings.

    Args:
        cases: `{"case": name, ...}`; those with fixed files get all verdicts with their times, for `settled`.
        verdicts: of `read_verdicts`; None for none.
    """
    texts: dict[str, str] = {}
    if verdicts is not None:
        merged = consensus(verdicts)
        _warn_of_ties(merged)
        known = [case["case"] for case in cases]
        if unknown := sorted(set(merged["case"]) - set(known)):
            logger.warning("verdicts: no case is named %s", listed_unknown(unknown, known))
        decided = merged[merged["verdict"] != ""]
        by_case = decided.set_index("label").groupby("case")["verdict"]
        texts = {name: json.dumps(own.to_dict()) for name, own in by_case}
        fixed = {case["case"] for case in cases if case.get("fixed")}
        for name, own in verdicts[verdicts["case"].isin(fixed)].groupby("case"):
            seconds = own["reviewed_at"].map(lambda time: int(time.timestamp()))
            texts[name] = json.dumps([*zip(own["label"].tolist(), own["verdict"], seconds.tolist(), strict=True)])
    return [{**case, "verdicts": texts.get(case["case"], "")} for case in cases]


def settled(text: str, changes: Mapping[int, tuple[str, int]]) -> str:
    """Return the verdicts about a case with fixed files by majority, without those that are older than the change.

    Args:
        text: of `add_verdicts`.
        changes: of `scripts.solf.fixing.changes_of`.

    Returns:
        The text of a case without fixed files.
    """
    balance: Counter[int] = Counter()
    for label, verdict, seconds in json.loads(text):
        if not is_outdated(seconds, changes.get(label)):
            balance[label] += 1 if verdict == "accept" else -1
    return json.dumps({label: "accept" if votes > 0 else "reject" for label, votes in balance.items() if votes})


def is_outdated(seconds: float, change: tuple[str, int] | None) -> bool:
    """Return whether a verdict, given so many seconds after 1970, is older than the change of its label."""
    return change is not None and int(seconds) < change[1]


def without_outdated(verdicts: pd.DataFrame, changes: Mapping[tuple[str, int], tuple[str, int]]) -> pd.DataFrame:
    """Leave out verdicts about labels that were fixed later, and name them in a warning.

    Args:
        verdicts: of `read_verdicts`.
        changes: kind of file and time, in seconds since 1970, of each change by case and label.
    """
    import pandas as pd  # as in `read_verdicts`

    times = zip(verdicts["case"], verdicts["label"], verdicts["reviewed_at"], strict=True)
    old = pd.Series(
        [is_outdated(time.timestamp(), changes.get((case, label))) for case, label, time in times], dtype=bool
    )
    if outdated := (verdicts["case"] + " " + verdicts["organ"])[old].unique().tolist():
        message = "verdicts: of %d labels some are older than their fixed file and do not count; review them again: %s"
        logger.warning(message, len(outdated), listed(outdated))
    return verdicts[~old].reset_index(drop=True)


def _warn_of_ties(merged: pd.DataFrame) -> None:
    ties = merged[merged["verdict"] == ""]
    if len(ties):
        names = listed((ties["case"] + " " + ties["organ"]).tolist())
        logger.warning("verdicts: as many accept as reject %d labels, which the rule decides: %s", len(ties), names)


def warn_of_absent(verdicts: pd.DataFrame, tables: Iterable[pd.DataFrame]) -> None:
    """Name in a warning the verdicts about labels that their cases lack.

    Args:
        verdicts: of `consensus`.
        tables: decisions, with `case` and `label`; verdicts about other cases are not named.
    """
    import pandas as pd  # as in `read_verdicts`

    found, cases = [pd.DataFrame(columns=KEY)], set()
    for table in tables:
        found.append(table.loc[table["verdict"] != "", KEY])
        cases |= set(table["case"])
    judged = pd.MultiIndex.from_frame(pd.concat(found).astype({"label": "int64"}))
    absent = verdicts[verdicts["case"].isin(cases) & ~pd.MultiIndex.from_frame(verdicts[KEY]).isin(judged)]
    if len(absent := absent[absent["verdict"] != ""]):
        names = listed((absent["case"] + " " + absent["organ"]).tolist())
        logger.warning("verdicts: %d are about labels that their cases lack: %s", len(absent), names)


def with_verdicts(decisions: pd.DataFrame, verdicts: pd.DataFrame | None) -> pd.DataFrame:
    """Let people overrule a filter.

    Args:
        decisions: of `scripts.solf.thresholds.judge`, with `case`.
        verdicts: of `consensus`; None changes nothing.

    Returns:
        The decisions with `verdict`, `reviewer` and `reviewed_at`, "" where there is none. An accepted label is kept
        and a rejected one rejected, whatever the rule says; `reason` says who decided when, then what the rule said.
    """
    import pandas as pd  # as in `read_verdicts`

    if verdicts is None:
        return decisions
    decided = verdicts[verdicts["verdict"] != ""].set_index(KEY)[list(_ADDED)]
    own = decided.reindex(pd.MultiIndex.from_frame(decisions[KEY])).fillna("").set_index(decisions.index)
    new = overruled(decisions["decision"], own["verdict"])
    against = (new != decisions["decision"]).map({True: " against the rule", False: ""})
    who = own["verdict"] + "ed by " + own["reviewer"] + " at " + own["reviewed_at"] + against
    reasons = who + decisions["reason"].map(lambda reason: f": {reason}" if reason else "")
    return decisions.assign(decision=new, reason=decisions["reason"].mask(own["verdict"] != "", reasons), **own)


def overruled(decisions: pd.Series, verdicts: pd.Series) -> pd.Series:
    """Return decisions with those of people in place of the rule's; verdicts may be "" or NaN for none.

    What is no label, such as an organ that is missing, cannot be accepted or rejected.
    """
    by_people = verdicts.map(_DECISIONS)
    return decisions.mask(by_people.notna() & decisions.isin(["keep", "reject"]), by_people)


def verdicts_of_case(text: str) -> dict[int, str]:
    """Return label to verdict of the text that `add_verdicts` gives a case."""
    return {int(label): verdict for label, verdict in json.loads(text or "{}").items()}
