"""The QC report of the label filter: a folder `qc` with an `index.html` that needs neither server nor network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scripts.solf.report.crops import CropFolder
from scripts.solf.report.drift import described
from scripts.solf.report.folder import whole_folder, write_data
from scripts.solf.report.pictures import PictureWriter
from scripts.solf.report.review import ReviewOptions, ReviewSet
from scripts.solf.report.summary import Limits, Summary, columns, plain

CASES_PER_PAGE = 50
_IDENTITY = ["case", "label", "decision", "margin"]
_RULES = {
    "percentile": "the lowest and the highest {epsilon_percent:g} % of the cohort, for each organ",
    "iqr": "values more than {iqr_factor:g} times the interquartile range beyond the quartiles",
    "mad": "values more than {mad_factor:g} robust standard deviations from the median",
    "deciles": "values more than {decile_factor:g} standard deviations from the median, each side's from its decile",
    "ranges": "values outside the fixed ranges of the published code",
}


def write_report(
    output_dir: str | Path,
    *,
    decisions: Iterable[pd.DataFrame],
    thresholds: Mapping[str, Any],
    sources: Mapping[str, str],
    load: Callable[[str], Any],
    review: ReviewOptions,
    failures: Mapping[str, str],
    drift: pd.DataFrame | None = None,
) -> Path:
    """Write `<output_dir>/qc`; an older report there is replaced when the new one is complete.

    The table of decisions is read once, chunk by chunk. Then each case of the review set is read once.

    Args:
        output_dir: folder in which `qc` is written, and `crops` if wanted.
        decisions: the table of decisions in chunks of whole cases, in order of case: `case`, `label`, `organ`, each
            voting feature and its `_percentile`, `votes`, `decision` (`keep`, `reject`, `drop`, or `missing` for an
            organ that the case lacks) and `reason`.
        thresholds: the content of `thresholds.json`.
        sources: case to the file of its label map; what cannot be read has no picture.
        load: reads such a file as a MetaTensor (1, I, J, K).
        review: which labels have pictures.
        failures: case to the reason why it could not be measured.
        drift: of `scripts.solf.report.drift.measure_drift`; None for none.

    Returns:
        The file `index.html`.

    Raises:
        InputError: the thresholds lack an entry or a label of the table, or `qc` is not a report.
    """
    limits, output_dir = Limits.read(thresholds), Path(output_dir)
    with whole_folder(output_dir / "qc") as folder:
        summary, chosen, digest, starts = Summary(limits), ReviewSet(review), hashlib.sha256(), []
        for table in _with_margins(decisions, limits):
            digest.update(pd.util.hash_pandas_object(table[_IDENTITY], index=False).to_numpy().tobytes())
            for first, page in _pages(table, limits):
                write_data(folder, f"labels-{len(starts):05d}", page)
                starts.append(summary.number_of_cases + first)
            summary.add(table)
            chosen.add(table)
        organs = dict(zip(limits.labels.tolist(), limits.organs, strict=True))
        crops = CropFolder(output_dir / "crops", organs) if review.crops else None
        pictures = PictureWriter(folder, organs=organs, sources=sources, images=review.paths, load=load, crops=crops)
        write_data(folder, "review", _review(chosen.chosen(), summary, pictures))
        write_data(folder, "cases", columns(summary.cases))
        write_data(folder, "rejected", summary.listed())
        write_data(folder, "distributions", summary.distributions())
        if drift is not None:
            write_data(folder, "drift", described(drift))
        about = {
            "has_drift": drift is not None,
            "fingerprint": digest.hexdigest()[:16],
            "failures": dict(sorted(failures.items())),
            "starts": starts,
        }
        write_data(folder, "overview", about | _overview(thresholds, summary, review))
    return output_dir / "qc" / "index.html"


def _with_margins(decisions: Iterable[pd.DataFrame], limits: Limits) -> Iterator[pd.DataFrame]:
    """Add how far each label is outside, NaN for missing organs; a rejected one is never inside."""
    for table in decisions:
        if len(table):
            values = table[limits.features].to_numpy(dtype=float)
            margin = limits.margins(limits.rows(table["label"].to_numpy()), values)
            margin[table["decision"] == "missing"] = np.nan
            margin[table["decision"] == "reject"] = margin[table["decision"] == "reject"].clip(0)
            yield table.assign(margin=margin, reason=table["reason"].fillna(""))


def _pages(table: pd.DataFrame, limits: Limits) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the labels of CASES_PER_PAGE cases at a time, after the number of their first case in the table."""
    number = pd.factorize(table["case"])[0]
    for first in range(0, number[-1] + 1, CASES_PER_PAGE):
        rows = table[(number >= first) & (number < first + CASES_PER_PAGE)]
        yield first, columns(rows[["case", "label", "votes", "decision", "reason"]]) | _measured(rows, limits)


def _measured(table: pd.DataFrame, limits: Limits) -> dict[str, list[list[float | None]]]:
    percentiles = [f"{name}_percentile" for name in limits.features]
    return {"values": plain(table[limits.features]), "percentiles": plain(table[percentiles])}


def _review(items: pd.DataFrame, summary: Summary, pictures: PictureWriter) -> dict[str, Any]:
    """Write the pictures and return the labels to review, in order, with the ordinary organ of each."""
    if items.empty:
        return {"items": {"case": [], "label": []}, "ordinary": {}}
    ordinary = {label: case for label, case in summary.ordinary.items() if label in set(items["label"])}
    found = pictures.write(items, ordinary, summary.rejected_of({*items["case"], *ordinary.values()}))
    shown = columns(items[["case", "label", "votes", "decision", "margin", "reason"]])
    shown |= _measured(items, summary.limits)
    shown["picture"] = [found[case, int(label)] for case, label in zip(items["case"], items["label"], strict=True)]
    beside = {label: {"case": case, **found[case, label]} for label, case in ordinary.items()}
    return {"items": shown, "ordinary": beside}


def _overview(thresholds: Mapping[str, Any], summary: Summary, review: ReviewOptions) -> dict[str, Any]:
    settings = {name: value for name, value in thresholds.items() if isinstance(value, str | int | float)}
    return {
        "totals": summary.totals(),
        "rule": rule_in_words(thresholds),
        "settings": settings | {"review_order": review.order, "review_labels": review.labels},
        "features": summary.limits.features,
        "organs": summary.organs(),
    }


def rule_in_words(thresholds: Mapping[str, Any]) -> str:
    """Describe in a few sentences when a label is rejected.

    Args:
        thresholds: the content of `thresholds.json`; without `rule` the sentence about it is left out.
    """
    features, rule = thresholds["features"], str(thresholds.get("rule", ""))
    names = ", ".join(str(feature).replace("_", " ") for feature in features)
    count = f"at least {thresholds['votes']} of {len(features)} features ({names})"
    sentences = [f"A label is rejected if {count} are outside their thresholds."]
    if rule:
        outside = _RULES[rule].format(**thresholds) if rule in _RULES else f"values by the rule {rule}"
        sentences.append(f"Outside are {outside}.")
    if "covariates" in thresholds:
        given = ", ".join(thresholds["covariates"]["coding"])
        sentences.append(f"Features are judged less what {given} predict of them.")
    if "subjects" in thresholds:
        sentences.append(f"The thresholds were fitted to {thresholds['subjects']} subjects.")
    return " ".join(sentences)
