"""The QC report of the label filter: a folder `qc` whose `index.html` opens from disk, without server or network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scripts.solf.report.blocks import Block, read_blocks
from scripts.solf.report.cases import CaseIndex
from scripts.solf.report.counts import Histograms, Limits, OrganCounts
from scripts.solf.report.folder import copy_assets, packed, packed_decimals, packed_json, whole_folder, write_data
from scripts.solf.report.pictures import draw_organ

CASES_PER_PAGE = 64
_NO_PERCENTILE = np.iinfo(np.uint16).max

_RULES = {
    "percentile": "the lowest and the highest {epsilon_percent:g} % of the cohort are outside, organ by organ",
    "iqr": "values more than {iqr_factor:g} times the interquartile range beyond the quartiles are outside",
    "mad": "values more than {mad_factor:g} robust standard deviations from the median are outside",
    "ranges": "values outside of fixed ranges are outside",
}


def write_report(
    output_dir: str | Path,
    *,
    decisions: Callable[[], Iterator[pd.DataFrame]],
    thresholds: Mapping[str, Any],
    sources: Mapping[str, str],
    worst: int = 24,
    label_names: str | Path = "",
) -> Path:
    """Write `<output_dir>/qc`; an older report there is replaced when the new one is whole.

    The table of decisions is read twice, block by block: first for the label pages, the cases and the organs, then for
    the histograms. The page loads a block of cases when one of them is opened.

    Args:
        output_dir: folder that gets the folder `qc`.
        decisions: gives the table of decisions in chunks of whole cases, in order of case; called twice. Its columns
            are `case`, `label`, `organ`, each voting feature and its `_percentile`, `votes`, `decision` (`keep`,
            `reject` or `drop`) and `reason`.
        thresholds: the content of `thresholds.json`.
        sources: case to the file of its label map, for the pictures; a file that cannot be read costs its picture.
        worst: the most cases with a picture; those with most rejected labels, then those farthest outside.
        label_names: the maps' own ids and names, see `scripts.solf.transforms.LoadLabelMapd`.

    Returns:
        The file `index.html`.

    Raises:
        ValueError: `worst` is negative, the table lacks columns or is out of order, the thresholds lack an entry, a
            library is not installed, or `qc` is a folder that is no report.
    """
    if worst < 0:
        raise ValueError(f"worst is {worst}: give the number of cases to draw, 0 for none.")
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
        draw = partial(draw_organ, label_names=label_names)
        worst_cases = [_worst_case(folder, n, case, index, rejected, sources, draw) for n, case in enumerate(chosen)]
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
    draw: Callable[..., tuple[int, int]],
) -> dict[str, Any]:
    """Draw a case and return what the page says of it."""
    about = {**index.case(case), "rejections": rejected[case]}
    name, picture = about["case"], f"pictures/{number:03d}.png"
    try:
        if name not in sources:
            raise ValueError("no label map is named for it")
        labels = [row["label"] for row in rejected[case]]
        size_px = draw(sources[name], folder / picture, label=about["worst"], rejected=labels)
    except (ValueError, OSError) as error:
        return {**about, "picture": None, "why": f"{Path(sources.get(name, '')).name} {error}".strip()}
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
    """Say in a few sentences when a label is rejected.

    Args:
        thresholds: the content of `thresholds.json`; a rule that is not known here is named.
    """
    features, rule = thresholds["features"], str(thresholds.get("rule", ""))
    names = ", ".join(str(feature).replace("_", " ") for feature in features)
    count = f"at least {thresholds['votes']} of {len(features)} features ({names})"
    try:
        outside = _RULES[rule].format(**thresholds)
    except KeyError:
        outside = f"what is outside follows the rule {rule or 'of thresholds.json'}"
    subjects = f" The thresholds come from {thresholds['subjects']} subjects." if "subjects" in thresholds else ""
    return f"A label is rejected when {count} are outside their thresholds; {outside}.{subjects}"
