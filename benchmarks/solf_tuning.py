"""Choice of the filter's rule by verdicts: `python -m benchmarks.solf_tuning`.

Measures phantoms with known errors, gives the true verdicts about the labels of two thirds of them to the search of
`tune.json`, and compares the paper's rule with the chosen one: by cross-validation, and, fitted to all phantoms, on the
last third, which nobody judged. Writes `results/solf_tuning.csv`.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from scripts.common.files import write_table
from scripts.common.organs import ORGANS
from scripts.solf.fitting import fit_thresholds
from scripts.solf.known_errors import rates
from scripts.solf.measuring import case_features
from scripts.solf.tables import cohort_table
from scripts.solf.thresholds import SHAPE, judge
from scripts.solf.tuning import Candidate, best, candidates, cross_validate
from tools.label_cohort import make_subject

RESULTS = Path(__file__).parent / "results" / "solf_tuning.csv"
CONFIG = Path(__file__).parents[1] / "bundles" / "solf_filter" / "configs" / "tune.json"
PAPER = {"rule": "percentile", "epsilon_percent": 2.0, "features": list(SHAPE), "votes": 2}
logger = logging.getLogger(__name__)


def measured_cohort(subjects: int, *, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the features of phantoms, and `case`, `label` and `wrong` of each label."""
    cases, errors = {}, []
    for index in tqdm(range(subjects), unit="person"):
        person = make_subject(seed, index, error_rate=0.05)
        cases[f"p{index:04d}"] = case_features(person.corrupted, person.affine, ORGANS)
        errors += [(f"p{index:04d}", label) for label, _ in person.errors]
    table = cohort_table(cases.items(), ORGANS)
    wrong = pd.MultiIndex.from_frame(table[["case", "label"]]).isin(errors)
    return table, table[["case", "label"]].assign(wrong=wrong)


def unseen(table: pd.DataFrame, truth: pd.DataFrame, candidate: Candidate, first: str) -> dict[str, float]:
    """Return `rates` of a rule that was fitted to all cases, on those from `first`."""
    decisions = judge(table, fit_thresholds(table, organs=ORGANS, **candidate.options))
    own = decisions[decisions["case"] >= first].merge(truth, on=["case", "label"])
    return rates(own, own["wrong"])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solf_tuning", description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=500, help="number of phantoms (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    table, truth = measured_cohort(args.subjects, seed=args.seed)
    first = f"p{2 * args.subjects // 3:04d}"
    judged = truth[truth["case"] < first]
    config = json.loads(CONFIG.read_text())
    grid = {name: config[f"train#trainer#{name}"] for name in ("feature_sets", "factors")}
    tried = candidates(**grid, current=PAPER)
    start, cpu = time.perf_counter(), time.process_time()
    scores = cross_validate(table, judged, organs=ORGANS, tried=tried, folds=config["folds"], seed=config["seed"])
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    rows = []
    for name, index in (("paper", 0), ("chosen", best(scores, max_false_rejections=config["max_false_rejections"]))):
        own = scores.loc[index].rename({"f1": "f1_cross_validated"})
        columns = ["rule", "factor", "features", "votes", "f1_cross_validated"]
        later = {f"{key}_unseen": value for key, value in unseen(table, truth, tried[index], first).items()}
        wanted = ("precision_unseen", "recall_unseen", "f1_unseen", "false_rejection_rate_unseen")
        rows.append({"name": name, **own[columns], **{key: later[key] for key in wanted}})
    counts = {"cases": args.subjects, "wrong_judged": int(judged["wrong"].sum()), "candidates": len(tried)}
    result = pd.DataFrame(rows).assign(**counts, **seconds)
    write_table(result, RESULTS, decimals=4)
    logger.info("%s", result.T.to_string())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
