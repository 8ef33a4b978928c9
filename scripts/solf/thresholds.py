"""Thresholds of the features of each organ, and the decisions that they lead to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.common.errors import InputError
from scripts.solf.covariates import Row, design_names
from scripts.solf.reference import MEASURES, RELATIVE, Reference, Related, measures, relate
from scripts.solf.tables import described

if TYPE_CHECKING:
    import pandas as pd

    from scripts.solf.norms import Norms

SHAPE = ("normalized_volume", "sphericity", "eccentricity")
ANATOMY = ("asymmetry", "offset_x", "offset_y", "offset_z")
MEASURED = (*SHAPE, "volume_mm3", "components", *ANATOMY)
FEATURES = (*MEASURED, *RELATIVE)
"""All features that may vote: the paper's three, those of the published code's ranges, and ours."""

FIELD_OF_VIEW = tuple(f"fov_{axis}_{end}_mm" for end in ("min", "max") for axis in "xyz")
INPUTS = tuple(dict.fromkeys(("case", "label", *MEASURED, *MEASURES, *FIELD_OF_VIEW)))
"""Columns of a table that is fitted or judged."""

LEVELS = np.linspace(0, 1, 201)
MIN_CASES = 20  # that show an organ's place, for the share of them that has it
_MARGIN = 2.0  # spreads of an organ's place between it and the end of the field of view


@dataclass(frozen=True)
class Thresholds:
    """Thresholds for L organs and F = len(FEATURES) features.

    Attributes:
        organs: label id to name, ascending.
        low: (L, F), values below are outside; -inf where there is no threshold.
        high: (L, F), values above are outside; +inf where there is no threshold.
        quantiles: (201, L, F), of the cohort at 0, 0.5, ... 100 %; NaN where no subject had a value.
        subjects: (L,), number of cases with the organ.
        voting: (F,), whether a feature votes.
        votes: features outside that reject a label.
        cases: number of cases of the cohort.
        present_percent: (L,), of the cases whose field of view shows the organ's place, the share that has it; NaN if
            they are less than 20, or the table of the fit had no fields of view.
        missing_percent: organs with at least this `present_percent` may be missing in another case.
        reference: the cohort's median person; None if the table of the fit had no positions.
        norms: what covariates predict of the features; None if the fit had none. `low`, `high` and `quantiles` are then
            those of features less what covariates predict beyond the median.
        about: how they were fitted: the rule and its options, the cohort's fingerprint, the version of the bundle.
    """

    organs: Mapping[int, str]
    low: np.ndarray
    high: np.ndarray
    quantiles: np.ndarray
    subjects: np.ndarray
    voting: np.ndarray
    votes: int
    cases: int = 0
    present_percent: np.ndarray | None = None
    missing_percent: float = 95.0
    reference: Reference | None = None
    norms: Norms | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> list[str]:
        """Names of the features that vote."""
        return [name for name, votes in zip(FEATURES, self.voting, strict=True) if votes]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ between any two fits with different results."""
        texts = [sorted(self.organs.items()), sorted(self.about.items())]
        if self.norms is not None:
            texts.append(self.norms.coding)
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
        numbers = (self.votes, self.cases, self.missing_percent)
        arrays = (self.low, self.high, self.quantiles, self.subjects, self.voting, numbers, self.present_percent)
        norms = () if self.norms is None else (self.norms.coefficients, self.norms.low, self.norms.high)
        for array in (*arrays, *(self.reference or ()), *norms):
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()[:16]


def judge(table: pd.DataFrame, thresholds: Thresholds, covariates: Mapping[str, Row] | None = None) -> pd.DataFrame:
    """Decide about labels.

    Args:
        table: a row per label, with `label` and the columns of `INPUTS` that the voting features need, perhaps `case`;
            without `case`, all rows are one case. Only tables with `FIELD_OF_VIEW` and `MEASURES` get missing organs.
        thresholds: of `scripts.solf.fitting.fit_thresholds`.
        covariates: case ("" without `case`) to its covariates; needed if the thresholds have norms.

    Returns:
        `case` if the table has it, `label`, `organ`, each voting feature with its `_percentile` in the cohort,
        `votes`, `decision` (`keep`, `reject` or `missing`) and `reason`, then the other columns of
        `scripts.solf.tables.DESCRIBED`. A shape feature that is undefined because the label is one voxel (NaN) counts
        as outside; the asymmetry of an organ without a contralateral one, and the relative features of an organ or
        person that the reference knows too little of, do not. A `missing` row, after the labels of its case, is an
        organ that nearly every case of the cohort has and that this one lacks, although the field of view shows its
        place; it has no features. With norms, features are less what covariates predict beyond the median, and
        `covariates` is `used`, or why a case is judged without: `no row`, `no height`, ...; its percentiles are among
        the adjusted values of the cohort.

    Raises:
        InputError: a label is not in the table of organs, or the thresholds need covariates and there are none.

    Source:
        UKBOB (arXiv 2504.06908), SOLF: a label with at least two of three features outside is rejected. Ours: relative
        features and missing organs.
    """
    import pandas as pd  # here, as programs that read thresholds may lack it

    names, rows = thresholds.features, organ_rows(table, thresholds.organs)
    columns = [FEATURES.index(name) for name in names]
    cases, case_names = case_numbers(table)
    related = related_labels(table, cases, rows, thresholds)
    values = _values(table, names, cases, rows, related)
    low, high = (bound[rows][:, columns] for bound in (thresholds.low, thresholds.high))
    marks: list[str] = []
    if thresholds.norms is not None:
        designs, marks = thresholds.norms.designs(case_names, covariates)
        values = thresholds.norms.adjusted(values, names, rows, designs[cases])
        unknown = np.isnan(designs[cases, 0])
        low[unknown], high[unknown] = (
            bound[rows[unknown]][:, columns] for bound in (thresholds.norms.low, thresholds.norms.high)
        )
    bounded = np.isfinite(low) | np.isfinite(high)
    outside = (values < low) | (values > high) | (np.isnan(values) & bounded & np.isin(names, SHAPE))
    votes = outside.sum(axis=1)
    rejected = votes >= thresholds.votes
    decisions: dict[str, Any] = {name: table[name] for name in ("case", "label") if name in table}
    decisions["organ"] = table["label"].map(dict(thresholds.organs))
    for n, (name, column) in enumerate(zip(names, columns, strict=True)):
        percentile = _percentiles(values[:, n], rows, thresholds.quantiles[:, :, column])
        decisions |= {name: values[:, n], f"{name}_percentile": percentile}
    reasons = np.where(bounded.any(axis=1), "", "no thresholds: too few subjects").astype(object)
    for row in np.flatnonzero(rejected):
        reasons[row] = _reason(names, values[row], low[row], high[row], outside[row])
    decision = np.where(rejected, "reject", "keep")
    decisions |= {"votes": votes, "decision": decision, "reason": reasons}
    decided = pd.DataFrame(decisions | described(table, without=names))
    absent, shown = absent_in_view(table, cases, rows, related, thresholds.reference)
    if absent.any() and thresholds.present_percent is not None:
        missing = np.argwhere(absent & shown & (thresholds.present_percent >= thresholds.missing_percent))
        decided = _with_missing(decided, cases, missing, case_names, thresholds) if len(missing) else decided
    if marks:
        mark_of = dict(zip(case_names, marks, strict=True))
        decided["covariates"] = decided["case"].map(mark_of) if "case" in decided else marks[0]
    return decided


def case_numbers(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each row's case, by first occurrence, and the names of the cases."""
    import pandas as pd  # as in `judge`

    if "case" not in table:
        return np.zeros(len(table), dtype=int), np.array([""], dtype=object)
    numbers, names = pd.factorize(table["case"])
    return numbers, np.asarray(names, dtype=object)


def related_labels(table: pd.DataFrame, cases: np.ndarray, rows: np.ndarray, thresholds: Thresholds) -> Related | None:
    """Return the people of a table against the reference; None without a reference or positions."""
    if thresholds.reference is None or not set(MEASURES) <= set(table):
        return None
    return relate(measures(table, cases, rows, len(thresholds.organs)), thresholds.reference)


def _values(
    table: pd.DataFrame, names: list[str], cases: np.ndarray, rows: np.ndarray, related: Related | None
) -> np.ndarray:
    """Return the features `names` of the labels, (K, F)."""
    values = np.empty((len(table), len(names)))
    for n, name in enumerate(names):
        if name not in RELATIVE:
            values[:, n] = table[name]
        elif related is None:
            raise InputError(f"{name} needs the columns {', '.join(MEASURES)}; give a table that has them.")
        else:
            values[:, n] = related.features[cases, rows, RELATIVE.index(name)]
    return values


def absent_in_view(
    table: pd.DataFrame, cases: np.ndarray, rows: np.ndarray, related: Related | None, reference: Reference | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return which cases lack which organs, and whose field of view shows their places, both (N, L).

    A place is shown if the image goes on for two of the organ's spreads on all sides of it. Without a reference,
    positions or fields of view, none is.
    """
    shape = (int(cases.max(initial=-1)) + 1, 0 if related is None else related.features.shape[1])
    if related is None or not set(FIELD_OF_VIEW) <= set(table):
        return np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    first = np.unique(cases, return_index=True)[1]
    box_mm = table[list(FIELD_OF_VIEW)].to_numpy(dtype=float)[first].reshape(-1, 2, 1, 3)
    margin_mm, places_mm = _MARGIN * reference.spreads[:, 1:], related.places_mm
    shown = ((places_mm >= box_mm[:, 0] + margin_mm) & (places_mm <= box_mm[:, 1] - margin_mm)).all(axis=2)
    absent = np.ones(shape, dtype=bool)
    absent[cases, rows] = False
    return absent, shown


def _with_missing(
    decided: pd.DataFrame, cases: np.ndarray, missing: np.ndarray, case_names: np.ndarray, thresholds: Thresholds
) -> pd.DataFrame:
    """Return decisions with a row per missing organ after the labels of its case."""
    import pandas as pd  # as in `judge`

    labels, organs = np.array(list(thresholds.organs)), np.array(list(thresholds.organs.values()), dtype=object)
    row = missing[:, 1]
    added = pd.DataFrame({"label": labels[row], "organ": organs[row], "votes": 0, "decision": "missing"})
    shares = thresholds.present_percent[row]
    added["reason"] = [
        f"missing; {share:.3g} % of the cohort have it where the image shows its place" for share in shares
    ]
    if "case" in decided:
        added["case"] = case_names[missing[:, 0]]
    kinds = {name: kind for name, kind in decided.dtypes.items() if name in added}
    both = pd.concat([decided, added.reindex(columns=decided.columns).astype(kinds)], ignore_index=True)
    order = np.argsort(np.concatenate([cases, missing[:, 0]]), kind="stable")
    return both.iloc[order].reset_index(drop=True)


def organ_rows(table: pd.DataFrame, organs: Mapping[int, str]) -> np.ndarray:
    """Return the row of each label of a table in the arrays of `Thresholds`.

    Raises:
        InputError: a label is not one of the organs.
    """
    labels, known = table["label"].to_numpy(), np.array(list(organs))
    rows = np.searchsorted(known, labels).clip(max=len(known) - 1)
    unknown = np.unique(labels[known[rows] != labels])
    if len(unknown):
        raise InputError(f"labels {unknown.tolist()} are not in the table of {len(known)} organs; correct one of them.")
    return rows


def readable(thresholds: Thresholds) -> dict[str, Any]:
    """Return thresholds as plain values for a JSON file, after how they were fitted and their fingerprint."""
    medians = thresholds.quantiles[len(LEVELS) // 2]
    organs: dict[str, dict[str, Any]] = {}
    for row, (label, organ) in enumerate(thresholds.organs.items()):
        organs[str(label)] = {"organ": organ, "subjects": int(thresholds.subjects[row])}
        for name in thresholds.features:
            at = (row, FEATURES.index(name))
            numbers = {"low": thresholds.low[at], "median": medians[at], "high": thresholds.high[at]}
            organs[str(label)][name] = {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()}
            if thresholds.norms is not None:
                organs[str(label)][name]["coefficients"] = thresholds.norms.coefficients[:, *at].tolist()
    about = {**thresholds.about, "subjects": thresholds.cases, "missing_percent": thresholds.missing_percent}
    about |= {"fingerprint": thresholds.fingerprint}
    if thresholds.norms is not None:
        coding = dict(thresholds.norms.coding)
        about["covariates"] = {"coding": coding, "columns_of_coefficients": design_names(coding)}
    return {**about, "features": thresholds.features, "votes": thresholds.votes, "organs": organs}


def summary(thresholds: Thresholds) -> str:
    """Describe thresholds in one line."""
    about = {key: thresholds.about.get(key) or "unknown" for key in ("rule", "version", "cohort")}
    return (
        f"thresholds {thresholds.fingerprint}, rule {about['rule']}, {thresholds.votes} of "
        f"{', '.join(thresholds.features)}, fitted to {thresholds.cases} cases (cohort {about['cohort'][:16]}) by "
        f"version {about['version']}"
    )


def _percentiles(values: np.ndarray, rows: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Return the percentiles, 0..100, of (N,) values of the organs `rows` in the (201, L) quantiles."""
    percentiles = np.full(len(values), np.nan)
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(quantiles.shape[1] + 1))
    for row in np.flatnonzero(np.diff(starts)):
        own = order[starts[row] : starts[row + 1]]
        if not np.isnan(quantiles[0, row]):
            percentiles[own] = np.interp(values[own], quantiles[:, row], 100 * LEVELS)
    return percentiles


def _reason(names: list[str], values: np.ndarray, low: np.ndarray, high: np.ndarray, outside: np.ndarray) -> str:
    parts = []
    for n in np.flatnonzero(outside):
        if np.isnan(values[n]):
            parts.append(f"{names[n]} undefined, too few voxels")
        else:
            side, bound = ("below", low[n]) if values[n] < low[n] else ("above", high[n])
            parts.append(f"{names[n]} {values[n]:.4g} {side} {bound:.4g}")
    return "; ".join(parts)
