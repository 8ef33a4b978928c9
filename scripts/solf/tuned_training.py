"""Fitting the label filter with the rule that agrees best with verdicts or known errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.common.errors import InputError, raise_all
from scripts.common.files import write_table
from scripts.common.settings import setting_problems
from scripts.solf.known_errors import check_cases, read_errors
from scripts.solf.training import FilterTrainer
from scripts.solf.tuning import best, candidates, cross_validate, require_enough
from scripts.solf.verdicts import KEY, consensus, warn_of_absent, without_outdated

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


class TunedTrainer(FilterTrainer):
    """A `FilterTrainer` that chooses its rule by judged labels, then fits it to the whole cohort.

    Writes `tuning.csv`, the scores of all candidates by `scripts.solf.tuning.cross_validate`, in which `chosen` and
    `current`, the rule of the settings, are marked.

    Args:
        verdicts: of `scripts.solf.verdicts.read_verdicts`; labels without a verdict do not count. None for none.
        known_errors: list of all labels that are wrong, see `scripts.solf.known_errors.read_errors`; "" for none.
        max_false_rejections: share of the right labels that the rule may reject.
        folds: of the cross-validation.
        seed: of the division into folds.
        feature_sets: see `scripts.solf.tuning.candidates`.
        factors: see `scripts.solf.tuning.candidates`.
        rule: options of `scripts.solf.fitting.fit_thresholds`, one candidate among the others.
        options: as `FilterTrainer`.

    Raises:
        InputError: an option is out of its range, there are neither or both of verdicts and known errors, or too few,
            or there are covariates.
    """

    def __init__(
        self,
        *,
        verdicts: pd.DataFrame | None,
        known_errors: str | Path = "",
        max_false_rejections: float = 0.015,
        folds: int = 5,
        seed: int = 0,
        feature_sets: Sequence[Sequence[str]],
        factors: Mapping[str, Sequence[float]],
        rule: Mapping[str, Any],
        **options: Any,
    ) -> None:
        if options.get("covariates") is not None:
            raise InputError(
                "tuning compares rules without covariates: leave covariates empty, and fit the rule later."
            )
        super().__init__(rule={**rule, "rule": "ranges"}, **options)  # which needs no number of cases
        self.rule = dict(rule)
        self.limits = {"max_false_rejections": max_false_rejections, "folds": folds}
        self.seed = seed
        raise_all(setting_problems({**self.limits, "seed": seed}), "tuning", "correct the settings")
        if (verdicts is None) == (not known_errors):
            raise InputError("tuning needs labels that people judged: set either verdicts or known_errors.")
        self.tried = candidates(feature_sets=feature_sets, factors=factors, current=self.rule)
        self.all_verdicts = verdicts
        self.judged = consensus(verdicts) if verdicts is not None else None
        self.errors = None if verdicts is not None else read_errors(known_errors, self.network.organs)
        self._check_judged()

    def _check_judged(self) -> None:
        """Refuse too few verdicts or errors before anything is measured."""
        names = [case["case"] for case in self.cases]
        if self.judged is not None:
            check_cases(self.judged["case"].unique(), names, setting="verdicts")
            own = self.judged[self.judged["case"].isin(names)]
            self._require_enough(own.assign(wrong=own["verdict"] == "reject")[own["verdict"] != ""])
        else:
            check_cases(self.errors["case"].unique(), names, setting="known_errors")
            self._require_enough(self.errors[self.errors["case"].isin(names)].assign(wrong=True), right=np.inf)

    def _require_enough(self, judged: pd.DataFrame, right: float | None = None) -> None:
        wrong = judged["wrong"]
        right = int((~wrong).sum()) if right is None else right
        require_enough(wrong=int(wrong.sum()), right=right, cases=judged[wrong]["case"].nunique(), **self.limits)

    def choose_rule(self, table: pd.DataFrame) -> dict[str, Any]:
        """Return the options of the best rule, and write `tuning.csv`.

        Raises:
            InputError: too few labels were judged, or all rules reject too many right ones.
        """
        judged = self._truth(table)
        self._require_enough(judged)
        limit = self.limits["max_false_rejections"]
        scores = cross_validate(
            table, judged, organs=self.network.organs, tried=self.tried, folds=self.limits["folds"], seed=self.seed
        )
        scores.insert(0, "current", (scores.index == 0) & (self.rule["rule"] != "ranges"))
        scores.insert(0, "chosen", False)
        path = self.output_dir / "tuning.csv"
        try:
            row = best(scores, max_false_rejections=limit)
            scores.loc[row, "chosen"] = True
        finally:
            write_table(scores, path)
        logger.info("chose of %d rules, %s; wrote %s", len(scores), _described(scores.loc[row]), path)
        for _, own in scores[scores["current"] & (scores.index != row)].iterrows():
            logger.info("the rule of the settings: %s", _described(own))
        return {**self.rule, **self.tried[row].options}

    def _truth(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return `case`, `label` and `wrong` of the judged labels of the cohort."""
        present = table[KEY]
        if self.judged is not None:
            current = consensus(without_outdated(self.all_verdicts, self.changes))
            verdicts = current[current["verdict"] != ""]
            found = present.merge(verdicts[[*KEY, "verdict"]], on=KEY)
            warn_of_absent(verdicts, [present.merge(found, on=KEY, how="left").fillna({"verdict": ""})])
            return found.assign(wrong=found["verdict"] == "reject")[[*KEY, "wrong"]]
        found = present.merge(self.errors, on=KEY, how="left")
        if absent := len(self.errors[self.errors["case"].isin(present["case"])]) - int(found["kind"].notna().sum()):
            logger.warning("known_errors: %d are of labels that their cases lack, which no rule can reject", absent)
        return found.assign(wrong=found["kind"].notna())[[*KEY, "wrong"]]


def _described(row: pd.Series) -> str:
    return (
        f"{row['rule']} {row['factor']:g}, {row['votes']} of {row['features'].replace(' ', ', ')}: F1 {row['f1']:.3f}, "
        f"precision {row['precision']:.3f}, recall {row['recall']:.3f}, {100 * row['false_rejections']:.2f} % of the "
        f"right labels rejected"
    )
