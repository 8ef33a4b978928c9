"""Precision and recall of the label filter: `python -m benchmarks.solf_quality`.

Compares rules on phantoms, and on people warped from two real label maps (`../shared/data`) with errors by code that
shares nothing with the phantoms' generator. Each rule is fitted to the maps that it then filters, as with labels that
nobody has checked, and to a cohort without errors. The factors of the rules are compared on other people, on whom they
were chosen. Writes `results/solf_quality.csv`, `solf_quality_factors.csv`, `solf_quality.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.solf.cohorts import Cohort, people, phantoms
from benchmarks.solf.quality_report import draw, markdown
from benchmarks.solf.real_people import ATLASES, DATA
from benchmarks.solf.scores import CONTACTS, Rule, rows_of
from scripts.common.files import atomic_path, write_table

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parents[1] / "bundles" / "solf_filter" / "configs"
CHOOSING_SEED, REPORT_SEED, CLEAN_SEED = 11, 12, 13
PHANTOM_RATES = (0.05, 0.02, 0.1)
REAL_RATE = 0.06
PHANTOMS, PEOPLE = 200, 120
MIN_SUBJECTS = 100  # 1 % at each end

_SHAPE = ["normalized_volume", "sphericity", "eccentricity"]
_OFFSETS = ["offset_x", "offset_y", "offset_z"]


def default_rule() -> Rule:
    """Return the rule of `train.json`."""
    config = json.loads((CONFIGS / "train.json").read_text())
    return {name: config[name] for name in config["train"]["trainer"]["rule"]}


def rules() -> dict[str, Rule | None]:
    """Return the options of `fit_thresholds` by name."""
    default = default_rule()
    return {
        "no filter": None,
        "published code: fixed ranges": {"rule": "ranges"},
        "IQR: Tukey's fences, 2 of 3": {"rule": "iqr"},
        "volume only, 2 %": {"features": ["normalized_volume"], "votes": 1},
        "paper: 1 %, 2 of 3": {"epsilon_percent": 1.0},
        "paper: 2 %, 2 of 3": {},
        "paper: 4 %, 2 of 3": {"epsilon_percent": 4.0},
        "robust.json of 0.3.0": {"rule": "mad", "features": _SHAPE + _OFFSETS, "votes": 1, "mad_factor": 4.0},
        "default features, mad": {**default, "rule": "mad", "mad_factor": 6.0},
        "unusual contacts alone, no rule": CONTACTS,
        "default without positions": {**default, "features": default["features"][:-3]},
        "default": default,
    }


def factors() -> dict[str, Rule]:
    """Return the rules whose factors are compared on the cohorts on which they were chosen."""
    default = default_rule()
    found = {f"deciles {x:g}": {**default, "decile_factor": x} for x in (3.5, 4.0, 4.25, 4.5, 5.0)}
    found |= {f"mad {x:g}": {**default, "rule": "mad", "mad_factor": x} for x in (4.0, 5.0, 6.0, 7.0)}
    without = [name for name in default["features"] if name != "eccentricity"]
    found["default without eccentricity"] = {**default, "features": without}
    without = [name for name in default["features"] if name != "components"]
    return found | {"default without components": {**default, "features": without}}


def make_cohorts(
    pool: ProcessPoolExecutor, *, seed: int, phantom_count: int, people_count: int, is_choosing: bool
) -> dict[str, tuple[Cohort, Cohort | None]]:
    """Draw all cohorts, those without errors too unless they are for choosing a rule."""
    cohorts = {}
    clean = None if is_choosing else phantoms(pool, seed=CLEAN_SEED, subjects=phantom_count, rate=0.0)
    for rate in PHANTOM_RATES[: 1 if is_choosing else None]:
        name = f"phantoms, {100 * rate:g} %"
        cohorts[name] = phantoms(pool, seed=seed, subjects=phantom_count, rate=rate), clean
    for atlas in ATLASES:
        draw_people = partial(people, pool, atlas=atlas, subjects=people_count)
        clean = None if is_choosing else draw_people(seed=CLEAN_SEED, rate=0.0)
        cohorts[atlas] = draw_people(seed=seed, rate=REAL_RATE), clean
    return cohorts


def main() -> int:
    """Make the cohorts, apply the rules, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=PHANTOMS, help=f"phantoms in each cohort ({PHANTOMS})")
    parser.add_argument("--people", type=int, default=PEOPLE, help=f"people in each cohort of real shape ({PEOPLE})")
    args = parser.parse_args()
    if min(args.phantoms, args.people) < MIN_SUBJECTS:
        parser.error(f"the rules need at least {MIN_SUBJECTS} phantoms and people")
    if not DATA.is_dir():
        parser.error(f"{DATA}: the real label maps are absent")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("scripts.solf.fitting").setLevel(logging.ERROR)  # organs too rare for a rule, at every fit
    counts = {"phantom_count": args.phantoms, "people_count": args.people}
    with ProcessPoolExecutor(2) as pool:
        choosing = make_cohorts(pool, seed=CHOOSING_SEED, is_choosing=True, **counts)
        cohorts = make_cohorts(pool, seed=REPORT_SEED, is_choosing=False, **counts)
    found = [rows_of(name, rule, key, *cohorts[key]) for name, rule in rules().items() for key in cohorts]
    table = pd.DataFrame([row for rows in found for row in rows])
    tried = [rows_of(name, rule, key, *choosing[key])[0] for name, rule in factors().items() for key in choosing]
    write_table(table, RESULTS / "solf_quality.csv", decimals=4)
    write_table(pd.DataFrame(tried), RESULTS / "solf_quality_factors.csv", decimals=4)
    draw(table, RESULTS / "solf_quality.png")
    sizes = {key: (cohort.table["case"].nunique(), len(cohort.table)) for key, (cohort, _) in cohorts.items()}
    text = markdown(table, pd.DataFrame(tried), default=default_rule(), sizes=sizes)
    with atomic_path(RESULTS / "solf_quality.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    logger.info("%s", text)
    return 0


logger = logging.getLogger(__name__)

if __name__ == "__main__":
    sys.exit(main())
