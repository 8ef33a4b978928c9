"""How good the filter is: against labels drawn by hand, and against a list of known errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ignite.engine import Engine

from scripts.cases import (
    CaseHandler,
    case_name,
    check_same_grid,
    decollated,
    gather_cases,
    is_rank0,
    label_array,
    remember,
    source_path,
    write_table,
)
from scripts.inputs import list_cases
from scripts.labels import IDS_OF_NAMES
from scripts.names import stem
from scripts.solf.filter import LabelFilter

logger = logging.getLogger(__name__)


def paired_cases(source: str | Path, reference: str | Path = "") -> list[dict[str, str]]:
    """List label maps with the manual ones of the same names.

    Args:
        source: what `scripts.inputs.list_cases` takes.
        reference: folder of the manual label maps; "" for those that a datalist names as `label`, or for none.

    Returns:
        The cases, with `label` where there is a manual map. A folder must have one for at least one case.

    Raises:
        ValueError: `source` or `reference` hold nothing, or no names in common.
    """
    cases = list_cases(source)
    if not reference:
        return cases
    manual = {stem(case["image"]): case["image"] for case in list_cases(reference)}
    paired = [{**case, "label": manual[stem(case["image"])]} for case in cases if stem(case["image"]) in manual]
    if not paired:
        raise ValueError(f"{reference}: holds no label map named as one of {source}: give files the same names.")
    return paired


class FilterScores(CaseHandler):
    """Score the decisions of a filter as an evaluator runs it.

    After each epoch rank 0 writes `scores.csv`, a row per case and label with the decision, its Dice with the manual
    label, if there is one, and whether it is a known error; `summary.csv`, a row per organ; and, given known errors,
    `errors.csv`, precision, recall and F1 of all and recall per kind. The engine's metrics get `dice_raw`, the mean
    over labels before the filter, `dice_kept`, over those that it keeps, as the paper counts, `dice_background`, where
    rejected ones count 0, and `precision`, `recall` and `f1`.

    Args:
        output_dir: folder of the tables.
        network: the filter, with its thresholds loaded when the engine runs.
        known_errors: CSV with `case`, and `label` (id) or `organ` (name), perhaps `kind`, of the labels that should be
            rejected; "" for none.
        image_key: the label map as it was given, (1, X, Y, Z).
        label_key: the manual label map on the same grid, if the case has one.

    Raises:
        ValueError: the list of errors lacks a column or names an unknown organ, or a manual map has another grid.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: LabelFilter,
        *,
        known_errors: str | Path = "",
        image_key: str = "image",
        label_key: str = "label",
    ) -> None:
        super().__init__()
        self.output_dir, self.network = Path(output_dir), network
        self.errors = read_errors(known_errors) if known_errors else None
        self.image_key, self.label_key = image_key, label_key

    def __call__(self, engine: Engine) -> None:
        """Score the cases of one iteration."""
        for item, _ in decollated(engine):
            case = case_name(item)
            decisions = self.network.decide(item["features"].cpu().numpy())
            rows = decisions.assign(case=case, dice=decisions["label"].map(self._dice(item, case)))
            remember(self._cases, case, source=source_path(item, key=self.image_key), value=rows)

    def _dice(self, item: Mapping[str, Any], case: str) -> dict[int, float]:
        """Return the Dice of the labels with the manual ones; nothing where there are none."""
        if self.label_key not in item:
            return {}
        raw, manual = (label_array(item, key, case=case) for key in (self.image_key, self.label_key))
        check_same_grid(raw, manual, case=case, name="manual label map")
        return label_dice(raw.array, manual.array)

    def _finish(self, engine: Engine) -> None:
        """Bring the decisions of all ranks together, write them and set the metrics."""
        tables = [rows for _, rows in gather_cases(self._cases).values()]
        if not tables:
            return
        scores = pd.concat(tables, ignore_index=True)
        scores.insert(0, "case", scores.pop("case"))
        metrics = _dice_means(scores)
        if self.errors is not None:
            scores = scores.merge(self.errors, on=["case", "label"], how="left")
            by_kind = error_rates(scores)
            metrics |= by_kind.set_index("kind").loc["all", ["precision", "recall", "f1"]].to_dict()
        engine.state.metrics.update(metrics)
        if is_rank0():
            write_table(scores, self.output_dir / "scores.csv")
            write_table(_summary(scores), self.output_dir / "summary.csv")
            if self.errors is not None:
                write_table(by_kind, self.output_dir / "errors.csv")
            logger.info("%s", ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


def label_dice(label: np.ndarray, truth: np.ndarray) -> dict[int, float]:
    """Return the Dice of every label but 0 that one of two maps of one shape has, ascending."""
    n = int(max(label.max(initial=0), truth.max(initial=0))) + 1
    true, differs = np.bincount(truth.ravel(), minlength=n), label != truth
    both = true - np.bincount(truth[differs], minlength=n)
    own = both + np.bincount(label[differs], minlength=n)
    return {int(k): float(2 * both[k] / (own[k] + true[k])) for k in np.flatnonzero(own + true) if k}


def read_errors(path: str | Path) -> pd.DataFrame:
    """Read a list of known errors: `case`, `label` and `kind` ("error" where the file has none).

    Raises:
        ValueError: the file lacks a column, or names an unknown organ.
    """
    try:
        table = pd.read_csv(path, dtype={"case": str})
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): give a CSV with case and label.") from error
    if "label" not in table and "organ" in table:
        unknown = sorted(set(table["organ"]) - set(IDS_OF_NAMES))
        if unknown:
            raise ValueError(f"{path}: names no organs {unknown[:4]}: give ids as label, or names of scripts.labels.")
        table["label"] = table["organ"].map(IDS_OF_NAMES)
    missing = [column for column in ("case", "label") if column not in table]
    if missing:
        raise ValueError(f"{path}: lacks the columns {missing}: give case, and label or organ.")
    kinds = table.get("kind", "error")
    return table.assign(kind=kinds)[["case", "label", "kind"]].drop_duplicates(["case", "label"])


def error_rates(scores: pd.DataFrame) -> pd.DataFrame:
    """Count how well decisions find known errors.

    Args:
        scores: a row per label judged, with `decision`, and `kind` of the error, missing where there is none.

    Returns:
        A row per kind of error, then `all`: `labels` in error, `rejected` of them, `recall`; for all also
        `false_rejections`, `precision` and `f1` (0 where nothing was rejected).
    """
    rejected, wrong = scores["decision"] != "keep", scores["kind"].notna()
    kinds = scores[wrong].assign(rejected=rejected).groupby("kind")["rejected"].agg(labels="size", rejected="sum")
    kinds.loc["all"] = kinds.sum()
    kinds["recall"] = kinds["rejected"] / kinds["labels"].clip(lower=1)
    hits, false = kinds.loc["all", "rejected"], int((rejected & ~wrong).sum())
    precision, recall = hits / max(hits + false, 1), kinds.loc["all", "recall"]
    kinds.loc["all", "false_rejections"] = false
    kinds.loc["all", "precision"] = precision
    kinds.loc["all", "f1"] = 2 * precision * recall / max(precision + recall, 1e-12)
    return kinds.reset_index()


def _dice_means(scores: pd.DataFrame) -> dict[str, float]:
    scored = scores[scores["dice"].notna()]
    if scored.empty:
        return {}
    kept = scored["decision"] == "keep"
    return {
        "dice_raw": float(scored["dice"].mean()),
        "dice_kept": float(scored.loc[kept, "dice"].mean()),
        "dice_background": float(scored["dice"].where(kept, 0).mean()),
    }


def _summary(scores: pd.DataFrame) -> pd.DataFrame:
    kept = scores["decision"] == "keep"
    columns = {
        "labels": scores["decision"],
        "rejected": ~kept,
        "dice_raw": scores["dice"],
        "dice_kept": scores["dice"].where(kept),
        "dice_background": scores["dice"].where(kept | scores["dice"].isna(), 0),
    }
    how = {name: "size" if name == "labels" else "sum" if name == "rejected" else "mean" for name in columns}
    return scores[["label", "organ"]].assign(**columns).groupby(["label", "organ"]).agg(how).reset_index()
