"""Scores of rules on cohorts with known errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmarks.solf.cohorts import Cohort
from scripts.solf.contacts import fit_contacts, with_unusual_contacts
from scripts.solf.covariates import Covariates
from scripts.solf.fitting import fit_thresholds
from scripts.solf.thresholds import judge

Rule = dict[str, Any]
"""Options of `fit_thresholds`."""
CONTACTS: Rule = {"rule": "contacts"}
"""Rejects labels that have `unusual_contacts`."""


def decided(rule: Rule | None, *, fit: Cohort, on: Cohort, covariates: Covariates | None = None) -> pd.DataFrame:
    """Fit a rule to one cohort and apply it to another, perhaps given covariates of the cases of both.

    Returns:
        A row per label, missing organ, and organ that the rule calls missing: `case`, `label`, `kind`, `dice`,
        `rejected`.
    """
    if rule is None:
        return on.truth.assign(rejected=False)
    if rule == CONTACTS:
        percent = fit_contacts([fit.table], fit.organs)
        touching = with_unusual_contacts(on.table[["case", "label"]], on.table, percent, on.organs)
        both = on.truth.merge(touching, on=["case", "label"], how="left").fillna({"unusual_contacts": ""})
        return both.assign(rejected=both["unusual_contacts"] != "")
    thresholds = fit_thresholds(fit.table, organs=fit.organs, covariates=covariates, **rule)
    decisions = judge(on.table, thresholds, covariates and covariates.rows)
    both = on.truth.merge(decisions[["case", "label", "decision"]], on=["case", "label"], how="outer")
    return both.assign(kind=both["kind"].fillna(""), rejected=both["decision"].isin(["reject", "missing"]))


def score(rows: pd.DataFrame) -> dict[str, float]:
    """Compare decisions with the truth.

    Args:
        rows: of `decided`.

    Returns:
        `precision`, NaN if nothing was rejected; `recall`; `f1`; `false_rejections`, the rejected share of the correct
        labels; `false_missing`, the number of organs that are called missing and were never there.
    """
    rejected, wrong, there = rows["rejected"], rows["kind"] != "", rows["dice"].notna()
    hits, missed, false = (rejected & wrong).sum(), (~rejected & wrong).sum(), (rejected & ~wrong).sum()
    return {
        "precision": hits / (hits + false) if hits + false else np.nan,
        "recall": hits / (hits + missed) if hits + missed else np.nan,
        "f1": 2 * hits / (2 * hits + missed + false) if hits + missed + false else np.nan,
        "false_rejections": (rejected & ~wrong & there).sum() / max((~wrong & there).sum(), 1),
        "false_missing": int((rejected & ~wrong & ~there).sum()),
    }


def score_kind(rows: pd.DataFrame, kind: str) -> dict[str, float]:
    """Compare decisions with the errors of one kind, weighted to the number of all errors.

    A false rejection has no kind. Without the weight, all false rejections would be compared with the few errors of one
    kind, and every precision would be low.
    """
    rejected, wrong = rows["rejected"], rows["kind"] != ""
    false, recall = (rejected & ~wrong).sum(), rejected[rows["kind"] == kind].mean()
    hits = recall * wrong.sum()
    precision = hits / (hits + false) if hits + false else np.nan
    return {"precision": precision, "recall": recall, "f1": 2 * hits / (hits + false + wrong.sum())}


def dice_means(rows: pd.DataFrame) -> dict[str, float]:
    """Return the mean Dice of the labels before filtering, of the kept ones, and with rejected ones counted as 0."""
    labels = rows[rows["dice"].notna()]
    kept = ~labels["rejected"]
    return {
        "dice_before": labels["dice"].mean(),
        "dice_kept": labels.loc[kept, "dice"].mean(),
        "dice_missing_as_0": (labels["dice"] * kept).mean(),
    }


def rows_of(name: str, rule: Rule | None, cohort: str, errors: Cohort, clean: Cohort | None) -> list[dict[str, object]]:
    """Apply a rule to a cohort that it is fitted to: a row for all errors, and one for each kind.

    Args:
        name: of the rule.
        rule: its options.
        cohort: name of the cohort.
        errors: the cohort.
        clean: one without errors, to which the rule is fitted too; None for none.
    """
    found = decided(rule, fit=errors, on=errors)
    head = {"rule": name, "cohort": cohort}
    row = {**head, "kind": "all", "errors": int((found["kind"] != "").sum()), **score(found), **dice_means(found)}
    if clean is not None:
        own = score(decided(rule, fit=clean, on=clean))
        row |= {"clean_rejected": own["false_rejections"], "clean_missing": own["false_missing"]}
    rows = [row]
    for kind, labels in found[found["kind"] != ""].groupby("kind"):
        row = {**head, "kind": kind, "errors": len(labels), "median_dice": labels["dice"].median()}
        rows.append(row | score_kind(found, kind))
    return rows
