"""Does knowing sex, age and height help the label filter? `python -m benchmarks.solf_covariates`.

People of real shape (`../shared/data`) with known errors get a sex, an age and a height, and the volumes of their
organs are multiplied by what these do to each organ, drawn at random once per cohort. Each rule is fitted to the cohort
that it filters, without and with the covariates; `none` shows what fitting useless covariates costs. Also times the fit
of 71 organs and 9 features of 51,761 people. Writes `results/solf_covariates.csv` and `solf_covariates_fit.csv`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd

from benchmarks.solf.cohorts import Cohort, people
from benchmarks.solf.real_people import ATLASES, DATA
from benchmarks.solf.scores import decided, score
from benchmarks.solf_quality import RESULTS, default_rule
from scripts.common.files import write_table
from scripts.solf.covariates import Covariates, learn_coding
from scripts.solf.norms import fit_coefficients

PEOPLE, SEED, RATE = 300, 14, 0.06
EFFECTS = {"none": 0.0, "moderate": 0.1, "strong": 0.2}
"""Standard deviation, over the organs, of what a covariate's standard deviation does to the logarithm of volume."""
_VOLUMES = ("volume_mm3", "mesh_volume_mm3", "normalized_volume")


def rules() -> dict[str, dict[str, object]]:
    """Return the options of `fit_thresholds` by name."""
    alone = {"rule": "deciles", "votes": 1, "decile_factor": 4.25}
    return {
        "default": default_rule(),
        "paper: 2 %, 2 of 3": {},
        "deciles, volume in mm3 alone": {**alone, "features": ["volume_mm3"]},
        "deciles, relative volume alone": {**alone, "features": ["relative_volume"]},
    }


def with_effects(cohort: Cohort, *, effect: float, rng: np.random.Generator) -> tuple[Cohort, Covariates]:
    """Give people covariates, and multiply the volumes of their organs by the effects of these."""
    cases = cohort.table["case"].unique()
    drawn = {"sex": rng.integers(0, 2, len(cases)), "age": rng.normal(60, 8, len(cases))}
    drawn["height"] = 165 + 12 * drawn["sex"] + rng.normal(0, 7, len(cases))
    units = np.column_stack([(values - values.mean()) / values.std() for values in drawn.values()])
    effects = rng.normal(0, effect, (max(cohort.organs) + 1, 3))
    effects[:, 2] += effect  # all organs grow with height
    table = cohort.table.copy()
    own = units[pd.Categorical(table["case"], categories=cases).codes]
    factors = np.exp((own * effects[table["label"]]).sum(axis=1))
    for name in _VOLUMES:
        table[name] *= factors
    table["normalized_volume"] /= table.groupby("case")["normalized_volume"].transform("sum")
    texts = pd.DataFrame(drawn, index=cases).astype(str).assign(sex=np.where(drawn["sex"], "male", "female"))
    rows = texts.to_dict("index")
    return cohort._replace(table=table), Covariates("", rows, learn_coding(list(rows.values()), list(drawn)))


def compared(name: str, cohort: Cohort) -> list[dict[str, object]]:
    """Score all rules without and with covariates."""
    rows = []
    for kind, effect in EFFECTS.items():
        changed, covariates = with_effects(cohort, effect=effect, rng=np.random.default_rng([SEED, 2]))
        for rule, options in rules().items():
            for given in (None, covariates):
                found = decided(options, fit=changed, on=changed, covariates=given)
                head = {"cohort": name, "effect": kind, "rule": rule, "covariates": "with" if given else "without"}
                rows.append(head | score(found))
    return rows


def time_fits(organs: int = 71, features: int = 9) -> pd.DataFrame:
    """Time the fit of one organ and feature of small and large cohorts, and extrapolate to all of them."""
    rng, rows = np.random.default_rng(0), []
    for count in (1000, 5000, 51_761):
        designs = np.column_stack([np.ones(count), rng.normal(size=(count, 2)), rng.random((count, 3)) < 0.3])
        values = designs @ rng.normal(size=6) + rng.laplace(size=count)
        start = time.perf_counter()
        for _ in range(features):
            fit_coefficients(values, "sphericity", rows=np.zeros(count, dtype=int), designs=designs, organs=1)
        rows.append({"people": count, "seconds_71_organs_9_features": organs * (time.perf_counter() - start)})
    return pd.DataFrame(rows)


def main() -> int:
    """Draw the cohorts, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=PEOPLE, help=f"people in each cohort ({PEOPLE})")
    args = parser.parse_args()
    if args.people < 100:  # 1 % at each end
        parser.error("the rules need at least 100 people")
    if not DATA.is_dir():
        parser.error(f"{DATA}: the real label maps are absent")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("scripts.solf.fitting").setLevel(logging.ERROR)  # organs too rare for a rule, at every fit
    with ProcessPoolExecutor(2) as pool:
        cohorts = {name: people(pool, atlas=name, seed=SEED, subjects=args.people, rate=RATE) for name in ATLASES}
    table = pd.DataFrame([row for name, cohort in cohorts.items() for row in compared(name, cohort)])
    write_table(table, RESULTS / "solf_covariates.csv", decimals=4)
    write_table(time_fits(), RESULTS / "solf_covariates_fit.csv", decimals=1)
    logger.info("%s", table.to_string(index=False, float_format="%.3f"))
    return 0


logger = logging.getLogger(__name__)

if __name__ == "__main__":
    sys.exit(main())
