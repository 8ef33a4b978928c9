"""Choosing the rule of the label filter by labels that people judged, with cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scripts.common.errors import InputError
from scripts.solf.fitting import fit_thresholds, subjects_needed
from scripts.solf.thresholds import FEATURES, SHAPE, Thresholds, judge, organ_rows

if TYPE_CHECKING:
    import pandas as pd

FACTOR_OF = {"percentile": "epsilon_percent", "iqr": "iqr_factor", "mad": "mad_factor", "deciles": "decile_factor"}
"""The option of `fit_thresholds` that says how far out a rule puts its thresholds."""
_MAX_VOTES = 3
_WRONG_PER_FOLD = 4
logger = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A rule that may be chosen.

    Attributes:
        rule: a key of `FACTOR_OF`.
        factor: value of the option that it names.
        features: names of features that vote.
        votes: features outside that reject a label.
    """

    rule: str
    factor: float
    features: tuple[str, ...]
    votes: int

    @property
    def options(self) -> dict[str, Any]:
        """Options of `scripts.solf.fitting.fit_thresholds`."""
        return {
            "rule": self.rule,
            FACTOR_OF[self.rule]: self.factor,
            "features": list(self.features),
            "votes": self.votes,
        }


def candidates(
    *, feature_sets: Sequence[Sequence[str]], factors: Mapping[str, Sequence[float]], current: Mapping[str, Any]
) -> list[Candidate]:
    """List all combinations of rule, factor, set of features and up to three votes.

    Args:
        feature_sets: sets of names of `FEATURES`.
        factors: rule to values of its factor.
        current: options of `fit_thresholds`, which come first; left out for the rule `ranges`, which has no options.

    Raises:
        InputError: a rule or feature is unknown, or a value is out of its range.
    """
    found = []
    if current["rule"] in FACTOR_OF:
        factor = float(current[FACTOR_OF[current["rule"]]])
        found.append(Candidate(current["rule"], factor, tuple(current["features"]), current["votes"]))
    if unknown := sorted(set(factors) - set(FACTOR_OF)):
        raise InputError(f"factors names the rule {unknown[0]!r}; give some of {', '.join(FACTOR_OF)}.")
    for rule, values in factors.items():
        for value in values:
            for names in feature_sets:
                votes = range(1, min(_MAX_VOTES, len(names)) + 1)
                found += [Candidate(rule, float(value), tuple(names), count) for count in votes]
    for candidate in found:
        subjects_needed(**candidate.options)
    return list(dict.fromkeys(found))


def require_enough(*, wrong: int, right: float, cases: int, folds: int, max_false_rejections: float) -> None:
    """Refuse a choice by too few judged labels.

    Args:
        wrong: number of labels that are wrong.
        right: number of labels that are right.
        cases: number of cases with a wrong label.
        folds: of the cross-validation.
        max_false_rejections: share of the right labels that a rule may reject; fewer labels than its inverse cannot
            show it.

    Raises:
        InputError: there are too few; the message has the numbers.
    """
    least_wrong, least_right = _WRONG_PER_FOLD * folds, int(np.ceil(1 / max_false_rejections - 1e-9))
    if wrong < least_wrong or right < least_right or cases < folds:
        counts = f"{wrong} wrong labels in {cases} cases" + (f" and {right:.0f} right ones" if right < np.inf else "")
        raise InputError(
            f"too few labels to choose a rule by: {counts}; {folds} folds and at most "
            f"{100 * max_false_rejections:g} % false rejections need {least_wrong} wrong ones in at least {folds} "
            f"cases and {least_right} right ones: review more, or lower folds or raise max_false_rejections."
        )


def fold_of_cases(judged: pd.DataFrame, *, folds: int, seed: int) -> pd.Series:
    """Deal the judged cases to folds, so that each gets about as many wrong labels.

    Args:
        judged: `case`, `label` and `wrong` (bool).
        folds: their number.
        seed: of the order of cases with equally many wrong labels.

    Returns:
        Case to fold, 0 to folds - 1.
    """
    import pandas as pd  # as in `scripts.solf.fitting`

    wrong = judged.groupby("case")["wrong"].sum()
    ordered = wrong.sample(frac=1, random_state=seed).sort_values(ascending=False, kind="stable")
    return pd.Series(np.arange(len(ordered)) % folds, index=ordered.index)


def cross_validate(
    table: pd.DataFrame,
    judged: pd.DataFrame,
    *,
    organs: Mapping[int, str],
    tried: Sequence[Candidate],
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Score candidates on cases that they were not fitted to.

    Each fold's cases are judged by thresholds that were fitted to all others, judged or not; no verdict takes part in a
    fit. Candidates that need more cases than a fold leaves are left out.

    Args:
        table: of the cohort, as `fit_thresholds` takes it.
        judged: `case`, `label` and `wrong` (bool) of labels of the table.
        organs: label id to name.
        tried: of `candidates`.
        folds: see `fold_of_cases`.
        seed: see `fold_of_cases`.

    Returns:
        A row per candidate, with its place in `tried` as index: `rule`, `factor`, `features` (spaces between them),
        `votes`; `f1`, `precision`, `recall` and `false_rejections`, the rejected share of the right labels, of the
        counts of all folds together; `f1_of_folds`.

    Raises:
        InputError: no candidate can be fitted to the cases that a fold leaves.

    Source:
        Forman and Scholz. Apples-to-apples in cross-validation studies. SIGKDD Explorations 2010: F1 of the counts of
        all folds has no bias, their mean F1 has where wrong labels are few.
    """
    import pandas as pd  # as in `scripts.solf.fitting`

    fold = fold_of_cases(judged, folds=folds, seed=seed)
    wrong = table[["case", "label"]].merge(judged, on=["case", "label"], how="left")["wrong"]
    counts = np.zeros((len(tried), folds, 4))
    for n in range(folds):
        own = table["case"].isin(fold.index[fold == n]).to_numpy()
        known = wrong[own].notna().to_numpy()
        counts[:, n] = _counts(table[~own], table[own], known, wrong[own][known].to_numpy(dtype=bool), organs, tried)
    able = ~np.isnan(counts).any(axis=(1, 2))
    if not able.any():
        cases = table["case"].nunique()
        raise InputError(f"no rule can be fitted to the {cases} cases less a fold of {folds}: give more label maps.")
    if not able.all():
        logger.info("%d of %d candidates need more cases than a fold leaves", (~able).sum(), len(tried))
    rows = {
        n: {**tried[n]._asdict(), "features": " ".join(tried[n].features), **_scores(counts[n])}
        for n in np.flatnonzero(able)
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _counts(
    fit: pd.DataFrame,
    test: pd.DataFrame,
    known: np.ndarray,
    wrong: np.ndarray,
    organs: Mapping[int, str],
    tried: Sequence[Candidate],
) -> np.ndarray:
    """Return found, missed, falsely rejected and rightly kept labels of each candidate, (C, 4); NaN if not fitted.

    The bounds of a feature do not depend on which others vote, so that one fit serves all sets of features and votes.
    """
    counts = np.full((len(tried), 4), np.nan)
    names = sorted({name for candidate in tried for name in candidate.features}, key=FEATURES.index)
    rows, values = organ_rows(test, organs)[known], None
    for rule, factor in dict.fromkeys((c.rule, c.factor) for c in tried):
        options = Candidate(rule, factor, tuple(names), 1).options
        if fit["case"].nunique() < subjects_needed(**options):
            continue
        with _quiet():
            thresholds = fit_thresholds(fit, organs=organs, **options)
        values = _values(test, thresholds)[known] if values is None else values
        outside = outside_features(values, thresholds, rows)
        for n, candidate in enumerate(tried):
            if (candidate.rule, candidate.factor) == (rule, factor):
                votes = outside[:, [names.index(name) for name in candidate.features]].sum(axis=1)
                rejected = votes >= candidate.votes
                cells = (rejected & wrong, ~rejected & wrong, rejected & ~wrong, ~rejected & ~wrong)
                counts[n] = [cell.sum() for cell in cells]
    return counts


def _values(table: pd.DataFrame, thresholds: Thresholds) -> np.ndarray:
    """Return the voting features of all labels of a table, (K, F); they do not depend on the bounds."""
    decisions = judge(table, thresholds)
    return decisions.loc[decisions["decision"] != "missing", thresholds.features].to_numpy(dtype=float)


def outside_features(values: np.ndarray, thresholds: Thresholds, rows: np.ndarray) -> np.ndarray:
    """Return which voting features of labels are outside, (K, F), as `scripts.solf.thresholds.judge` counts them.

    Args:
        values: (K, F), of the voting features.
        thresholds: of the fit.
        rows: (K,), number of each label's organ.
    """
    names = thresholds.features
    columns = [FEATURES.index(name) for name in names]
    low, high = (bound[rows][:, columns] for bound in (thresholds.low, thresholds.high))
    undefined = np.isnan(values) & (np.isfinite(low) | np.isfinite(high)) & np.isin(names, SHAPE)
    return (values < low) | (values > high) | undefined


def _scores(counts: np.ndarray) -> dict[str, Any]:
    """Return the scores of a candidate, of the counts of its folds, (folds, 4)."""
    found, missed, false, kept = counts.sum(axis=0)
    of_folds = [2 * a / max(2 * a + b + c, 1) for a, b, c, _ in counts]
    return {
        "f1": 2 * found / max(2 * found + missed + false, 1),
        "precision": found / max(found + false, 1),
        "recall": found / max(found + missed, 1),
        "false_rejections": false / max(false + kept, 1),
        "f1_of_folds": " ".join(f"{value:.3f}" for value in of_folds),
    }


def best(scores: pd.DataFrame, *, max_false_rejections: float) -> int:
    """Return the index of the best F1 among those with few false rejections; of equal ones, with the fewest features.

    Args:
        scores: of `cross_validate`.
        max_false_rejections: largest allowed share.

    Raises:
        InputError: all candidates reject more of the right labels.
    """
    allowed = scores[scores["false_rejections"] <= max_false_rejections]
    if allowed.empty:
        raise InputError(
            f"max_false_rejections is {max_false_rejections:g}: all {len(scores)} rules reject more of the right "
            f"labels, {scores['false_rejections'].min():.3f} at least; raise it."
        )
    order = allowed.assign(f1=-allowed["f1"].round(9), size=allowed["features"].str.count(" "))
    return int(order.sort_values(["f1", "size", "false_rejections"], kind="stable").index[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings about organs with few subjects, which every fit repeats; the last fit names them."""
    log = logging.getLogger(fit_thresholds.__module__)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
