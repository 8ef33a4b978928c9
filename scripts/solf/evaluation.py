"""Evaluation of the filter against manual labels and against a list of known errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.common.files import write_table
from scripts.common.grids import check_same_grid
from scripts.common.names import stem
from scripts.common.organs import IDS_OF_NAMES
from scripts.common.ranks import is_rank0
from scripts.inference.case_handler import (
    CaseHandler,
    case_name,
    decollated,
    gather_cases,
    label_array,
    record_case,
    source_path,
)
from scripts.solf.filter import LabelFilter
from scripts.solf.inputs import list_label_maps
from scripts.solf.tables import IGNORE

logger = logging.getLogger(__name__)


def paired_cases(
    source: str | Path, reference: str | Path = "", *, output_dir: str | Path | None = None
) -> list[dict[str, str]]:
    """List label maps with the manual label maps of the same names.

    Args:
        source: what `scripts.solf.inputs.list_label_maps` takes.
        reference: folder of the manual label maps; "" if a datalist names them as `label`, or if there are none.
        output_dir: folder of the results, which must not hold the label maps.

    Returns:
        The cases, with `label` if there is a manual map; with `reference` only those that have one.

    Raises:
        InputError: `source` or `reference` holds no label map, they have no names in common, `reference` has a name
            twice, or `output_dir` holds label maps.
    """
    cases = list_label_maps(source, output_dir=output_dir)
    if not reference:
        return cases
    files = [case["image"] for case in list_label_maps(reference, output_dir=output_dir)]
    manual = {stem(file): file for file in files}
    if twice := next((file for file in files if manual[stem(file)] != file), None):
        raise InputError(f"{reference}: {twice} and {manual[stem(twice)]} have the same name; keep one of them.")
    paired = [{**case, "label": manual[stem(case["image"])]} for case in cases if stem(case["image"]) in manual]
    if not paired:
        raise InputError(f"{reference}: has no label map with the name of one in {source}; give files the same names.")
    if len(paired) < len(cases):
        logger.warning("%s: left out %d label maps that have none there", reference, len(cases) - len(paired))
    return paired


class FilterScores(CaseHandler):
    """Score the decisions of a filter that an evaluator runs.

    After each epoch rank 0 writes `scores.csv`, a row per case and label with its decision, its Dice with the manual
    label, if there is one, and whether it is a known error; `summary.csv`, a row per organ; and, given known errors,
    `errors.csv`, precision, recall and F1 of all errors and recall of each kind. The engine's metrics get `dice_raw`,
    the mean over all labels, `dice_kept`, over the labels that the filter keeps, as in the paper, `dice_background`,
    with rejected labels counted as 0, and `precision`, `recall` and `f1`.

    Args:
        output_dir: folder of the tables.
        network: the filter, with its thresholds loaded when the engine runs.
        known_errors: CSV with `case`, and `label` (id) or `organ` (name), perhaps `kind`, of the labels that should be
            rejected; "" for none.
        image_key: the label map before the filter, (1, X, Y, Z).
        label_key: the manual label map on the same grid, if the case has one.

    Raises:
        InputError: the list of errors is refused, none of its cases is evaluated, or a manual map has another grid.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case

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

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        engine.add_event_handler(Events.STARTED, self._check_cases)
        super().attach(engine)

    def _check_cases(self, engine: Engine) -> None:
        """Refuse known errors of other cases than those that will be scored."""
        cases = {case["case"] for case in engine.state.dataloader.dataset.data}
        if self.errors is not None and not cases & set(self.errors["case"]):
            raise InputError(
                f"known_errors: none of its cases, such as {next(iter(self.errors['case']), None)!r}, is one of the "
                f"{len(cases)} that are evaluated, such as {min(cases)!r}; correct the names."
            )

    def __call__(self, engine: Engine) -> None:
        """Score the cases of one iteration."""
        for item, _ in decollated(engine):
            case = case_name(item)
            decisions = self.network.decide(item["features"].cpu().numpy())
            rows = decisions.assign(case=case, dice=decisions["label"].map(self._dice(item, case)))
            record_case(self._cases, case, source=source_path(item, key=self.image_key), value=rows)

    def _dice(self, item: Mapping[str, Any], case: str) -> dict[int, float]:
        """Return the Dice of each label with the manual one; empty without a manual label map."""
        if self.label_key not in item:
            return {}
        raw, manual = (label_array(item, key, case=case) for key in (self.image_key, self.label_key))
        check_same_grid(raw, manual, case=case, name="manual label map")
        return label_dice(raw.array, manual.array)

    def _finish(self, engine: Engine) -> None:
        """Gather the decisions of all ranks, write the tables and set the metrics."""
        tables = [rows for _, rows in gather_cases(self._cases).values()]
        if not tables:
            return
        scores = pd.concat(tables, ignore_index=True)
        scores.insert(0, "case", scores.pop("case"))
        metrics = _dice_means(scores)
        if self.errors is not None:
            scores = scores.merge(self.errors, on=["case", "label"], how="left")
            if missing := len(self.errors) - int(scores["kind"].notna().sum()):
                logger.warning("known_errors: %d of %d are not among the scored labels", missing, len(self.errors))
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
    """Return the Dice of every label but 0 that at least one of two maps of the same shape has, ascending."""
    n = int(max(label.max(initial=0), truth.max(initial=0))) + 1
    true, differs = np.bincount(truth.ravel(), minlength=n), label != truth
    both = true - np.bincount(truth[differs], minlength=n)
    own = both + np.bincount(label[differs], minlength=n)
    return {int(k): float(2 * both[k] / (own[k] + true[k])) for k in np.flatnonzero(own + true) if k}


def read_errors(path: str | Path) -> pd.DataFrame:
    """Read a list of known errors: `case`, `label` and `kind` ("error" where the file has none).

    Raises:
        InputError: the file cannot be read or lacks a column, or a row is not a case with a label.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a CSV with case and label.") from error
    if "case" not in table or not {"label", "organ"} & set(table):
        raise InputError(f"{path}: has the columns {', '.join(table)}; give case, and label or organ.")
    labels = table["label"] if "label" in table else table["organ"].map(IDS_OF_NAMES)
    labels = pd.to_numeric(labels, errors="coerce")
    kinds = table["kind"].replace("", "error") if "kind" in table else "error"
    errors = table.assign(label=labels, kind=kinds)[["case", "label", "kind"]].drop_duplicates()
    checks = {
        "has no case": errors["case"] == "",
        "has neither a label from 1 to 254 nor the name of an organ": ~errors["label"].isin(range(1, IGNORE)),
        'has the kind "all", which stands for all kinds in the results': errors["kind"] == "all",
    }
    for problem, bad in checks.items():
        if bad.any():
            raise InputError(f'{path}: the row "{",".join(table.loc[bad.idxmax()])}" {problem}; correct it.')
    if count := int(errors.duplicated(["case", "label"]).sum()):
        logger.warning("%s: %d labels have more than one kind of error; the first is used", path, count)
    return errors.drop_duplicates(["case", "label"]).astype({"label": int})


def error_rates(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare decisions with known errors.

    Args:
        scores: a row per label, with `decision`, and the `kind` of its error, NaN for a correct label.

    Returns:
        A row per kind of error, then `all`: `labels` with the error, `rejected` of them, `recall`; for `all` also
        `false_rejections`, `precision` and `f1` (0 if nothing was rejected).
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
