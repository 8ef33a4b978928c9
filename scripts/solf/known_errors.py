"""Lists of labels that are known to be wrong, and how many of them the filter finds."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from scripts.common.errors import InputError, raise_all
from scripts.common.names import listed_unknown, printable
from scripts.common.organs import IDS_OF_NAMES, ORGANS
from scripts.solf.verdicts import KEY, label_id, read_text_table

KINDS_OF_RESULTS = ("all", "verdicts")
"""Rows of the results besides the kinds of error."""
_FOUND = ("reject", "drop", "missing")
_NO_LABELS = ("missing", "absent")
logger = logging.getLogger(__name__)


def read_errors(path: str | Path, organs: Mapping[int, str]) -> pd.DataFrame:
    """Read a list of known errors: `case`, `label` and `kind` ("error" where the file has none).

    Args:
        path: CSV with `case`, and `label` (id) or `organ` (name, of the 72 organs also TotalSegmentator's), perhaps
            `kind`.
        organs: label id to name.

    Raises:
        InputError: the file cannot be read or lacks a column, or rows are no cases with a label. All are named.
    """
    table = read_text_table(path, required=["case"])
    if not {"label", "organ"} & set(table):
        raise InputError(f"{printable(path)}: has the columns {', '.join(table)}; give case, and label or organ.")
    names = {name: label for name, label in IDS_OF_NAMES.items() if organs.get(label) == ORGANS[label]}
    names |= {name: label for label, name in organs.items()}
    labels = table["label"].map(label_id) if "label" in table else table["organ"].map(names)
    kinds = table["kind"].replace("", "error") if "kind" in table else "error"
    errors = table.assign(label=labels, kind=kinds)[[*KEY, "kind"]]
    checks = {
        "has no case": errors["case"] == "",
        "has neither a label of the label table nor the name of an organ": ~errors["label"].isin(organs),
        "has a kind that stands for a row of the results": errors["kind"].isin(KINDS_OF_RESULTS),
    }
    bad = [
        f'the row "{",".join(table.loc[row])}" {problem}'
        for row in table.index
        for problem in (p for p, wrong in checks.items() if wrong[row])
    ]
    raise_all(bad, f"known_errors {printable(path)}", "correct these rows")
    errors = errors.drop_duplicates()
    if count := int(errors.duplicated(KEY).sum()):
        logger.warning("%s: %d labels have more than one kind of error; the first is used", path, count)
    return errors.drop_duplicates(KEY).astype({"label": int})


def check_cases(names: Collection[str], cases: Collection[str], *, setting: str) -> None:
    """Warn of names that are no cases, such as misspelt ones.

    Args:
        names: of the cases that a list is about.
        cases: of this run.
        setting: that names the list, for the message.

    Raises:
        InputError: none of them is a case.
    """
    if not set(names) & set(cases):
        raise InputError(
            f"{setting}: none of its cases, such as {next(iter(names), None)!r}, is one of the {len(cases)} of "
            f"this run, such as {min(cases, default=None)!r}; correct the names."
        )
    if unknown := sorted(set(names) - set(cases)):
        shown = listed_unknown(unknown, cases)
        logger.warning("%s: %d of its cases are not in this run, and left out: %s", setting, len(unknown), shown)


def with_errors(scores: pd.DataFrame, errors: pd.DataFrame, organs: Mapping[int, str]) -> pd.DataFrame:
    """Add the `kind` of each label's error, NaN if it is right, and a row per known error whose label is absent.

    Args:
        scores: a row per case and label, with `case`, `label`, `organ`, `votes`, `decision` and `reason`.
        errors: of `read_errors`; those of other cases are left out.
        organs: label id to name.

    Returns:
        The scores; a known error has the decision `absent` if neither the label nor a row `missing` is there.
    """
    errors = errors[errors["case"].isin(scores["case"])]
    absent = errors[~pd.MultiIndex.from_frame(errors[KEY]).isin(pd.MultiIndex.from_frame(scores[KEY]))]
    rows = absent[KEY].assign(organ=absent["label"].map(dict(organs)), votes=0, decision="absent", reason="")
    scores = pd.concat([scores, rows], ignore_index=True) if len(rows) else scores
    scores = scores.sort_values(KEY, kind="stable", ignore_index=True)
    return scores.merge(errors, on=KEY, how="left")


def error_rates(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare decisions with known errors.

    Args:
        scores: a row per label or absent organ, with `decision`, and the `kind` of its error, NaN for what is right.

    Returns:
        A row per kind of error, then `all`: `labels` with the error, absent ones included, of which `found` are
        rejected, dropped or `missing`, and `recall`; for `all` also what `rates` gives. An organ that is reported as
        missing though it is no known error counts against the precision as a rejected right label does.
    """
    found, wrong = scores["decision"].isin(_FOUND), scores["kind"].notna()
    kinds = scores[wrong].assign(found=found).groupby("kind")["found"].agg(labels="size", found="sum").reset_index()
    kinds["recall"] = kinds["found"] / kinds["labels"]
    return pd.concat([kinds, pd.DataFrame([{"kind": "all", **rates(scores, wrong)}])], ignore_index=True)


def rates(scores: pd.DataFrame, wrong: pd.Series) -> dict[str, float]:
    """Return how well decisions find what is wrong.

    Args:
        scores: rows with `decision`.
        wrong: whether each row is an error.

    Returns:
        `labels` that are wrong, `found` of them, `recall`, `right_labels`, `false_rejections` of them and their share
        `false_rejection_rate`, `false_missing`, `precision` and `f1` (0 if nothing was found).
    """
    found, is_label = scores["decision"].isin(_FOUND), ~scores["decision"].isin(_NO_LABELS)
    hits, labels, right = int((found & wrong).sum()), int(wrong.sum()), int((is_label & ~wrong).sum())
    false, false_missing = (int((found & ~wrong & kind).sum()) for kind in (is_label, ~is_label))
    precision, recall = hits / max(hits + false + false_missing, 1), hits / max(labels, 1)
    return {
        "labels": labels,
        "found": hits,
        "recall": recall,
        "right_labels": right,
        "false_rejections": false,
        "false_rejection_rate": false / max(right, 1),
        "false_missing": false_missing,
        "precision": precision,
        "f1": 2 * precision * recall / max(precision + recall, 1e-12),
    }
