"""Measured cohorts of real-shaped people, with and without errors."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.solf.real_errors import damage
from benchmarks.solf.real_people import ATLASES, draw_person
from scripts.solf.measuring import case_features
from scripts.solf.tables import cohort_table


class Cohort(NamedTuple):
    """Features and truth of a cohort.

    Attributes:
        table: of `scripts.solf.tables.cohort_table`, a row per label.
        truth: a row per label of the table and per missing organ: `case`, `label`, `kind` ("" if correct) and `dice`.
        organs: label id to name.
    """

    table: pd.DataFrame
    truth: pd.DataFrame
    organs: dict[int, str]


def measure(task: tuple[str, int, int, float]) -> tuple[np.ndarray, list[tuple[int, str, float]]]:
    """Draw and measure the person `(atlas, seed, number, rate of errors)`."""
    name, seed, number, rate = task
    atlas = ATLASES[name]()
    clean = draw_person(atlas, np.random.default_rng([seed, number, 0]))
    found = damage(clean, atlas, rate=rate, rng=np.random.default_rng([seed, number, 1]))
    labels = sorted({*found.dice, *found.kinds})
    truth = [(label, found.kinds.get(label, ""), found.dice.get(label, np.nan)) for label in labels]
    return case_features(found.label, found.affine, atlas.organs), truth


def make_cohort(name: str, *, seed: int, subjects: int, rate: float, pool: ProcessPoolExecutor) -> Cohort:
    """Draw and measure a cohort."""
    tasks = [(name, seed, number, rate) for number in range(subjects)]
    found = list(tqdm(pool.map(measure, tasks, chunksize=2), total=subjects, unit="person"))
    cases = [f"p{number:04d}" for number in range(subjects)]
    organs = dict(ATLASES[name]().organs)
    table = cohort_table(zip(cases, [features for features, _ in found], strict=True), organs)
    rows = [(case, *row) for case, (_, truth) in zip(cases, found, strict=True) for row in truth]
    return Cohort(table, pd.DataFrame(rows, columns=["case", "label", "kind", "dice"]), organs)
