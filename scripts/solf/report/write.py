"""The QC report of the label filter: a folder `qc` with an `index.html` that needs neither server nor network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scripts.common.errors import InputError
from scripts.solf.report.blocks import Block, read_blocks
from scripts.solf.report.cases import CaseIndex
from scripts.solf.report.counts import Histograms, Limits, OrganCounts
from scripts.solf.report.folder import copy_assets, packed, packed_decimals, packed_json, whole_folder, write_data
from scripts.solf.report.pictures import draw_organ

CASES_PER_PAGE = 64
_NO_PERCENTILE = np.iinfo(np.uint16).max

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
    decisions: Callable[[], Iterator[pd.DataFrame]],
    thresholds: Mapping[str, Any],
    sources: Mapping[str, str],
    load: Callable[[str], Any],
    worst: int = 24,
) -> Path:
    """Write `<output_dir>/qc`; an older report there is replaced when the new one is complete.

    The table of decisions is read twice, block by block: first for the label pages, the cases and the organs, then for
    the histograms. The page loads a block of cases when one of them is opened.

    Args:
        output_dir: folder in which `qc` is written.
        decisions: returns the table of decisions in chunks of whole cases, in order of case; called twice. Its columns
            are `case`, `label`, `organ`, each voting feature and its `_percentile`, `votes`, `decision` (`keep`,
            `reject` or `drop`) and `reason`.
        thresholds: the content of `thresholds.json`.
        sources: case to the file of its label map, for the pictures; a file that cannot be read has no picture.
        load: reads such a file as a MetaTensor (1, I, J, K).
        worst: maximum number of cases with a picture: those with most rejected labels, then those farthest outside.

    Returns:
        The file `index.html`.

    Raises:
        InputError: `worst` is negative, the table lacks columns or is out of order, the thresholds lack an entry, a
            library is not installed, or `qc` is not a report.
    """
    if worst < 0:
        raise InputError(f"worst is {worst}: give the number of cases to draw, 0 for none.")
    limits = Limits.read(thresholds)
    with whole_folder(Path(output_dir) / "qc") as folder:
        copy_assets(folder)
        index, organs = CaseIndex(), OrganCounts(limits)
        for number, block in enumerate(_blocks(decisions, limits)):
            excess = limits.excess(block.labels, block.values)
            index.add(block, excess)
            organs.add(block)
            write_data(folder, f"labels-{number:05d}", _page(block))
        chosen = index.worst(worst)
        histograms, rejected = _second_pass(_blocks(decisions, limits), organs, chosen)
        worst_cases = [_worst_case(folder, n, case, index, rejected, sources, load) for n, case in enumerate(chosen)]
        write_data(folder, "overview", _overview(thresholds, index, organs, worst_cases))
        write_data(folder, "histograms", histograms.data())
        write_data(folder, "cases", index.data())
    return Path(output_dir) / "qc" / "index.html"


def _blocks(decisions: Callable[[], Iterable[pd.DataFrame]], limits: Limits) -> Iterator[Block]:
    return read_blocks(decisions(), features=limits.features, votes=limits.votes, cases=CASES_PER_PAGE)


def _page(block: Block) -> dict[str, Any]:
    """Return the labels of a block's cases as compressed columns; percentiles are in hundredths."""
    hundredths = np.where(np.isnan(block.percentiles), _NO_PERCENTILE, np.round(block.percentiles * 100))
    reasons = {row: text for row, text in enumerate(block.reasons) if text}
    return {
        "names": packed_json(block.names),
        "starts": packed(block.starts.astype(np.uint32)),
        "label": packed(block.labels.astype(np.uint16)),
        "votes": packed(block.votes.astype(np.uint8)),
        "decision": packed(block.decisions),
        "values": [packed_decimals(column) for column in block.values.T],
        "percentiles": [packed(column.astype(np.uint16)) for column in hundredths.T],
        "reasons": packed_json(reasons),
    }


def _second_pass(
    blocks: Iterable[Block], organs: OrganCounts, chosen: Sequence[int]
) -> tuple[Histograms, dict[int, list[dict[str, Any]]]]:
    """Count the histograms, and collect the rejected labels of the chosen cases with their reasons."""
    histograms, rejected, first = Histograms(organs), {}, 0
    for block in blocks:
        histograms.add(block)
        for case in set(chosen) & set(range(first, first + len(block.names))):
            rows = np.arange(block.starts[case - first], block.starts[case - first + 1])
            rows = rows[block.rejected[rows]]
            rejected[case] = [{"label": int(block.labels[row]), "reason": block.reasons[row]} for row in rows]
        first += len(block.names)
    return histograms, rejected


def _worst_case(
    folder: Path,
    number: int,
    case: int,
    index: CaseIndex,
    rejected: Mapping[int, Sequence[Mapping[str, Any]]],
    sources: Mapping[str, str],
    load: Callable[[str], Any],
) -> dict[str, Any]:
    """Draw a case and return its entry for the page."""
    about = {**index.case(case), "rejections": rejected[case]}
    source, picture = sources.get(about["case"], ""), f"pictures/{number:03d}.png"
    if not source:
        return {**about, "picture": None, "why": "the path of its label map is unknown"}
    try:
        labels = [row["label"] for row in rejected[case]]
        volume = load(source)
        array, affine = volume[0].numpy(), volume.affine.numpy()
        size_px = draw_organ(array, affine, folder / picture, label=about["worst"], rejected=labels)
    except InputError as error:
        why = str(error).removeprefix(f"{source}: ").rstrip(".")
        return {**about, "picture": None, "why": f"{Path(source).name}: {why}"}
    return {**about, "picture": picture, "size": size_px}


def _overview(
    thresholds: Mapping[str, Any], index: CaseIndex, organs: OrganCounts, worst: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    features, votes = thresholds["features"], thresholds["votes"]
    settings = {k: v for k, v in thresholds.items() if isinstance(v, str | int | float)}
    return {
        "totals": index.totals(),
        "rule": rule_in_words(thresholds),
        "settings": settings,
        "features": list(features),
        "votes": votes,
        "cases_per_page": CASES_PER_PAGE,
        "organs": organs.data(),
        "worst": list(worst),
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
    if "subjects" in thresholds:
        sentences.append(f"The thresholds were fitted to {thresholds['subjects']} subjects.")
    return " ".join(sentences)
