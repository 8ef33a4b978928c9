"""Measured cohorts with known errors: phantoms, and people of real shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.solf.real_errors import damage
from benchmarks.solf.real_people import ATLASES, draw_person
from scripts.common.organs import ORGANS
from scripts.solf.contacts import partners
from scripts.solf.evaluation import label_dice
from scripts.solf.measuring import features_and_contacts
from scripts.solf.tables import cohort_table
from tools.label_body import SPACING_MM, draw_label_map
from tools.label_errors import MIN_VOXELS, inject_errors

Measured = tuple[np.ndarray, str, list[tuple[int, str, float]]]
"""Features and contacts of a map, and its labels and missing organs: label, kind of error or "", Dice or NaN."""


class Cohort(NamedTuple):
    """Features and truth of a cohort.

    Attributes:
        table: of `scripts.solf.tables.cohort_table`, a row per label, with `contacts`.
        truth: a row per label of the table and per missing organ: `case`, `label`, `kind` ("" if correct) and `dice`.
        organs: label id to name.
    """

    table: pd.DataFrame
    truth: pd.DataFrame
    organs: dict[int, str]


def measure_phantom(task: tuple[int, int, float]) -> Measured:
    """Draw and measure the phantom `(seed, number, rate of errors)`."""
    seed, number, rate = task
    clean, affine = draw_label_map(np.random.default_rng([seed, number, 0]))
    rng = np.random.default_rng([seed, number, 1])
    corrupted, errors = inject_errors(clean, rate=rate, rng=rng, spacing_mm=SPACING_MM)
    dice, kinds = label_dice(corrupted, clean), dict(errors)
    left = np.bincount(corrupted.ravel(), minlength=256) > 0
    had = np.bincount(clean.ravel(), minlength=256) >= MIN_VOXELS
    truth = [(label, kinds.get(label, ""), dice[label]) for label in dice if left[label]]
    truth += [(label, "missing", np.nan) for label in dice if had[label] and not left[label]]
    return *features_and_contacts(corrupted, affine, ORGANS), truth


def measure_person(task: tuple[str, int, int, float]) -> Measured:
    """Warp and measure the person `(atlas, seed, number, rate of errors)`."""
    name, seed, number, rate = task
    atlas = ATLASES[name]()
    clean = draw_person(atlas, np.random.default_rng([seed, number, 0]))
    found = damage(clean, atlas, rate=rate, rng=np.random.default_rng([seed, number, 1]))
    labels = sorted({*found.dice, *found.kinds})
    truth = [(label, found.kinds.get(label, ""), found.dice.get(label, np.nan)) for label in labels]
    return *features_and_contacts(found.label, found.affine, atlas.organs), truth


def phantoms(pool: ProcessPoolExecutor, *, seed: int, subjects: int, rate: float) -> Cohort:
    """Draw a cohort of phantoms; the same seed gives the same people at every rate."""
    return _cohort(pool, measure_phantom, [(seed, number, rate) for number in range(subjects)], ORGANS)


def people(pool: ProcessPoolExecutor, *, atlas: str, seed: int, subjects: int, rate: float) -> Cohort:
    """Draw a cohort of people warped from a real label map."""
    tasks = [(atlas, seed, number, rate) for number in range(subjects)]
    return _cohort(pool, measure_person, tasks, dict(ATLASES[atlas]().organs))


def _cohort(
    pool: ProcessPoolExecutor, measure: Callable[..., Measured], tasks: Sequence[tuple], organs: dict[int, str]
) -> Cohort:
    found = list(tqdm(pool.map(measure, tasks, chunksize=2), total=len(tasks), unit="person"))
    cases = [f"p{number:04d}" for number in range(len(tasks))]
    table = cohort_table(zip(cases, [features for features, *_ in found], strict=True), organs)
    touched = {case: partners(contacts) for case, (_, contacts, _) in zip(cases, found, strict=True)}
    keys = zip(table["case"], table["label"], strict=True)
    table["contacts"] = [" ".join(map(str, touched[case].get(label, ()))) for case, label in keys]
    rows = [(case, *row) for case, (*_, truth) in zip(cases, found, strict=True) for row in truth]
    return Cohort(table, pd.DataFrame(rows, columns=["case", "label", "kind", "dice"]), organs)
