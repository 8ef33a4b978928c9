"""Precision and recall of the label filter: `python -m benchmarks.solf_quality`.

Compares all rules on a cohort of phantoms with known errors. Each rule is fitted to the maps that it then filters, as
with labels that nobody has checked; it is also applied to another cohort without errors. Rules are tuned on a third
cohort. Writes `results/solf_quality.csv`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.solf.quality_report import draw, markdown
from scripts.common.files import atomic_path, write_table
from scripts.common.organs import ORGANS
from scripts.solf.anatomy import with_anatomy
from scripts.solf.evaluation import label_dice
from scripts.solf.features import label_shape_features
from scripts.solf.fitting import fit_thresholds
from scripts.solf.thresholds import ANATOMY, FEATURES, SHAPE, judge
from tools.label_body import SPACING_MM, draw_label_map
from tools.label_errors import inject_errors

RESULTS = Path(__file__).parent / "results"
TUNING_SEED, REPORT_SEED, CLEAN_SEED = 1, 2, 3
RATE, OTHER_RATES = 0.05, (0.02, 0.1)
MIN_SUBJECTS = 200
OFFSETS = tuple(name for name in ANATOMY if name.startswith("offset"))

Rule = dict[str, Any]
RULES: dict[str, Rule | None] = {
    "no filter": None,
    "published code: fixed ranges": {"rule": "ranges"},
    "IQR: Tukey's fences, 2 of 3": {"rule": "iqr"},
    "volume only, 2 % at each end": {"features": ["normalized_volume"], "votes": 1},
    **{f"paper: {e} % at each end, 2 of 3": {"epsilon_percent": float(e)} for e in range(1, 6)},
}
"""Options of `fit_thresholds` by name; the tuned rules are added."""

POOLS = {
    "tuned, shape alone": [SHAPE, (*SHAPE, "components")],
    "tuned, with position": [(*SHAPE, *OFFSETS), (*SHAPE, *ANATOMY), (*SHAPE, "components", *ANATOMY)],
}
FACTORS = {
    "percentile": ("epsilon_percent", (0.5, 1.0, 2.0, 3.0)),
    "iqr": ("iqr_factor", (1.0, 1.5, 2.0, 2.5, 3.0)),
    "mad": ("mad_factor", (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)),
}


def measure(task: tuple[int, int], *, rates: Sequence[float]) -> list[pd.DataFrame]:
    """Make and measure one person, a table for each error rate.

    Args:
        task: seed of the cohort and number of the person.
        rates: probabilities that an organ gets an error.

    Returns:
        A row per label of the corrupted map: `label`, the features, `dice` with the correct label, and `kind`, that of
        its error, "" if it is correct.
    """
    clean, affine = draw_label_map(np.random.default_rng([*task, 0]))
    tables = []
    for rate in rates:
        rng = np.random.default_rng([*task, 1])
        corrupted, errors = inject_errors(clean, rate=rate, rng=rng, spacing_mm=SPACING_MM)
        table = with_anatomy(label_shape_features(corrupted, affine), ORGANS)
        dice, kinds = label_dice(corrupted, clean), dict(errors)
        known = {"dice": table["label"].map(dice), "kind": [kinds.get(label, "") for label in table["label"]]}
        tables.append(table[["label", *FEATURES]].assign(**known))
    return tables


def make_cohort(seed: int, subjects: int, rates: Sequence[float], pool: ProcessPoolExecutor) -> list[pd.DataFrame]:
    """Measure a cohort, a table for each error rate."""
    tasks = [(seed, index) for index in range(subjects)]
    found = list(tqdm(pool.map(partial(measure, rates=rates), tasks, chunksize=5), total=subjects, unit="person"))
    return [pd.concat(tables, ignore_index=True) for tables in zip(*found, strict=True)]


def rejections(rule: Rule | None, *, fit: pd.DataFrame, on: Iterable[pd.DataFrame]) -> list[np.ndarray]:
    """Fit a rule to one table and return which labels of other tables it rejects."""
    if rule is None:
        return [np.zeros(len(table), dtype=bool) for table in on]
    columns = ["label", *rule.get("features", FEATURES)]
    thresholds = fit_thresholds(fit[columns], organs=ORGANS, **rule)
    return [(judge(table[columns], thresholds)["decision"] == "reject").to_numpy() for table in on]


def score(rejected: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Count labels.

    Args:
        rejected: (N,), whether the filter rejects a label.
        wrong: (N,), whether the label is wrong.

    Returns:
        `precision`, NaN if nothing was rejected; `recall`; `f1`; `false_rejections`, the rejected share of the correct
        labels.
    """
    hits, missed, false = (rejected & wrong).sum(), (~rejected & wrong).sum(), (rejected & ~wrong).sum()
    return {
        "precision": hits / (hits + false) if hits + false else np.nan,
        "recall": hits / (hits + missed) if hits + missed else np.nan,
        "f1": 2 * hits / (2 * hits + missed + false) if hits + missed + false else np.nan,
        "false_rejections": false / max((~wrong).sum(), 1),
    }


def score_kind(rejected: np.ndarray, kinds: np.ndarray, kind: str) -> dict[str, float]:
    """Count the labels with one kind of error, weighted to the number of all errors.

    A false rejection has no kind. Without the weight, all false rejections would be compared with the few errors of one
    kind, and every precision would be low.
    """
    wrong, own = kinds != "", kinds == kind
    false, recall = (rejected & ~wrong).sum(), rejected[own].mean()
    hits = recall * wrong.sum()
    precision = hits / (hits + false) if hits + false else np.nan
    return {"precision": precision, "recall": recall, "f1": 2 * hits / (hits + false + wrong.sum())}


def dice_means(rejected: np.ndarray, dice: np.ndarray) -> dict[str, float]:
    """Return the mean Dice before filtering, of the kept labels, and with rejected labels counted as 0."""
    kept = dice[~rejected].mean() if not rejected.all() else np.nan
    return {"dice_before": dice.mean(), "dice_kept": kept, "dice_missing_as_0": (dice * ~rejected).mean()}


def rows_of(
    name: str, rule: Rule | None, cohorts: dict[float, pd.DataFrame], clean: pd.DataFrame
) -> list[dict[str, object]]:
    """Apply a rule to all cohorts: a row for all errors at each rate, and a row per kind at the main rate."""
    rows: list[dict[str, object]] = []
    for rate, table in cohorts.items():
        rejected, held_out = rejections(rule, fit=table, on=(table, clean))
        kinds = table["kind"].to_numpy()
        row = {"rule": name, "error_rate": rate, "kind": "all", "errors": int((kinds != "").sum())}
        row |= score(rejected, kinds != "") | dice_means(rejected, table["dice"].to_numpy())
        rows.append(row | {"clean_cohort_rejected": held_out.mean()})
        if rate == RATE:
            (own,) = rejections(rule, fit=clean, on=[clean])
            rows[-1]["clean_cohort_rejected_by_its_own"] = own.mean()
            for kind in sorted(set(kinds) - {""}):
                own_dice = table.loc[kinds == kind, "dice"]
                row = {"rule": name, "error_rate": rate, "kind": kind, "errors": len(own_dice)}
                rows.append(row | score_kind(rejected, kinds, kind) | {"median_dice": own_dice.median()})
    return rows


def candidates(pools: Iterable[Sequence[str]]) -> list[Rule]:
    """List every rule, factor and number of votes for some sets of features."""
    found = []
    for features, (rule, (option, factors)), votes in itertools.product(pools, FACTORS.items(), (1, 2, 3)):
        found += [{"rule": rule, "features": list(features), "votes": votes, option: factor} for factor in factors]
    return found


def tuned(table: pd.DataFrame, pool: ProcessPoolExecutor) -> tuple[dict[str, Rule], dict[str, float]]:
    """Find the rule with the highest F1 in each pool of features, and that F1."""
    best, chosen = {}, {}
    for name, features in POOLS.items():
        rules = candidates(features)
        scores = list(pool.map(partial(_f1, table=table), rules, chunksize=8))
        best[name], chosen[name] = rules[int(np.nanargmax(scores))], float(np.nanmax(scores))
        logger.info("%s: F1 %.3f on the tuning cohort, %s", name, chosen[name], best[name])
    return best, chosen


def _f1(rule: Rule, *, table: pd.DataFrame) -> float:
    return score(rejections(rule, fit=table, on=[table])[0], table["kind"].to_numpy() != "")["f1"]


def false_by_organ(rule: Rule | None, table: pd.DataFrame) -> pd.Series:
    """Return the share of correct labels that a rule rejects, by organ, highest first."""
    rejected = pd.Series(rejections(rule, fit=table, on=[table])[0])[table["kind"] == ""]
    return rejected.groupby(table["label"].map(ORGANS)).mean().sort_values(ascending=False)


def main() -> int:
    """Make the cohorts, tune and apply the rules, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=300, help="people in each cohort (default: 300)")
    args = parser.parse_args()
    if args.subjects < MIN_SUBJECTS:
        parser.error(f"--subjects {args.subjects}: 0.5 % at each end requires at least {MIN_SUBJECTS}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("scripts.solf.fitting").setLevel(logging.ERROR)  # organs too rare for a rule, at every fit
    rates = (RATE, *OTHER_RATES)
    with ProcessPoolExecutor(2) as pool:
        (tuning,) = make_cohort(TUNING_SEED, args.subjects, [RATE], pool)
        cohorts = dict(zip(rates, make_cohort(REPORT_SEED, args.subjects, rates, pool), strict=True))
        (clean,) = make_cohort(CLEAN_SEED, args.subjects, [0.0], pool)
        best, chosen = tuned(tuning, pool)
        rules = RULES | best
        found = list(pool.map(partial(rows_of, cohorts=cohorts, clean=clean), rules, rules.values()))
    table = pd.DataFrame([row for rows in found for row in rows])
    write_table(table, RESULTS / "solf_quality.csv", decimals=4)
    draw(table[table["error_rate"] == RATE], RESULTS / "solf_quality.png")
    ranges = false_by_organ(RULES["published code: fixed ranges"], cohorts[RATE])
    sizes = {"subjects": args.subjects, "labels": len(cohorts[RATE])}
    text = markdown(table, rules, rate=RATE, ranges=ranges, chosen=chosen, **sizes)
    with atomic_path(RESULTS / "solf_quality.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    logger.info("%s", text)
    return 0


logger = logging.getLogger(__name__)

if __name__ == "__main__":
    sys.exit(main())
