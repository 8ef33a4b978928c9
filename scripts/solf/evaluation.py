"""Evaluation of the filter against manual labels, a list of known errors and verdicts of reviewers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.common.files import write_table
from scripts.common.flags import parse_flag
from scripts.common.grids import check_same_grid
from scripts.common.names import stem
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
from scripts.solf.fixing import changes_of
from scripts.solf.inputs import list_label_maps
from scripts.solf.known_errors import check_cases, error_rates, rates, read_errors, with_errors
from scripts.solf.reviewers import agreement, conflicts
from scripts.solf.verdicts import KEY, consensus, warn_of_absent, without_outdated

_METRICS = ("precision", "recall", "f1", "false_rejection_rate")
logger = logging.getLogger(__name__)


def paired_cases(
    source: str | Path,
    reference: str | Path = "",
    *,
    output_dir: str | Path | None = None,
    label_table: str | Path = "",
) -> list[dict[str, str]]:
    """List label maps with the manual label maps of the cases of the same names.

    Args:
        source: what `scripts.solf.inputs.list_label_maps` takes.
        reference: folder of the manual label maps; "" if a datalist names them as `label`, or if there are none.
        output_dir: folder of the results, which must not hold the label maps.
        label_table: JSON file of the labels, for the names of organs; "" for the 72 organs.

    Returns:
        The cases, with `label` if there is a manual map; with `reference` only those that have one.

    Raises:
        InputError: `source` or `reference` holds no label map, they have no names in common, `reference` has a name
            twice, or `output_dir` holds label maps.
    """
    options = {"output_dir": output_dir, "label_table": label_table}
    cases = list_label_maps(source, **options)
    if not reference:
        return cases
    manual = {case["case"]: case["image"] for case in list_label_maps(reference, **options)}
    names = Counter(Path(file).with_name(stem(file)) for file in manual.values())
    if twice := [file for file in manual.values() if names[Path(file).with_name(stem(file))] > 1]:
        raise InputError(f"{reference}: {twice[0]} and {twice[1]} have the same name; keep one of them.")
    paired = [{**case, "label": manual[case["case"]]} for case in cases if case["case"] in manual]
    if not paired:
        raise InputError(f"{reference}: has no label map with the name of one in {source}; give files the same names.")
    if len(paired) < len(cases):
        logger.warning("%s: left out %d label maps that have none there", reference, len(cases) - len(paired))
    return paired


class FilterScores(CaseHandler):
    """Score the decisions of a filter that an evaluator runs; verdicts do not change these.

    After each epoch rank 0 writes `scores.csv`, a row per case and label with its decision, its Dice with the manual
    label, if there is one, the kind of known error and the verdict; `summary.csv`, a row per organ; given known errors
    or verdicts, `errors.csv`, what `scripts.solf.known_errors.error_rates` gives, and a row `verdicts`, in which
    labels that reviewers reject are wrong, those that they accept right, and others do not count; and given several
    reviewers `agreement.csv` and `conflicts.csv`, see `scripts.solf.reviewers`. A known error whose label is absent is
    found if the filter reports the organ as `missing`; if not, its decision is `absent`.

    The engine's metrics get `dice_raw`, the mean over all labels, `dice_kept`, over the labels that the filter keeps,
    as in the paper, `dice_background`, with rejected labels counted as 0, and `precision`, `recall`, `f1` and
    `false_rejection_rate`, those by verdicts with `verdicts_` before the name.

    Args:
        output_dir: folder of the tables.
        network: the filter, with its thresholds loaded when the engine runs.
        known_errors: CSV of the labels that should be rejected, see `scripts.solf.known_errors.read_errors`; "" for
            none. All other labels of the cases are taken as right.
        verdicts: of `scripts.solf.verdicts.read_verdicts`; None for none.
        image_key: the label map before the filter, (1, X, Y, Z).
        label_key: the manual label map on the same grid, if the case has one.
        aggregate_only: of cleaning and fitting; refused here if true.

    Raises:
        InputError: only aggregates are wanted, the list of errors is refused, none of its cases, or none of the
            verdicts', is evaluated, or a manual map has another grid.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case

    def __init__(
        self,
        output_dir: str | Path,
        network: LabelFilter,
        *,
        known_errors: str | Path = "",
        verdicts: pd.DataFrame | None = None,
        image_key: str = "image",
        label_key: str = "label",
        aggregate_only: bool | str = False,
    ) -> None:
        super().__init__()
        if parse_flag(aggregate_only, "aggregate_only"):
            raise InputError(
                "aggregate_only is true, but evaluation writes a row per case and label: set it to false, and let none "
                "of the tables leave a secure environment."
            )
        self.output_dir, self.network = Path(output_dir), network
        self.errors = read_errors(known_errors, network.organs) if known_errors else None
        self.verdicts = verdicts
        self.image_key, self.label_key = image_key, label_key

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        engine.add_event_handler(Events.STARTED, self._check_cases)
        super().attach(engine)

    def _check_cases(self, engine: Engine) -> None:
        """Refuse known errors and verdicts about other cases than those that will be scored."""
        cases = {case["case"] for case in engine.state.dataloader.dataset.data}
        for setting, table in (("known_errors", self.errors), ("verdicts", self.verdicts)):
            if table is not None:
                check_cases(table["case"].unique(), cases, setting=setting)

    def __call__(self, engine: Engine) -> None:
        """Score the cases of one iteration."""
        for item, _ in decollated(engine):
            case = case_name(item)
            decisions = self.network.decide(item["features"].cpu().numpy(), covariates=item.get("covariates", ""))
            if "fixed" in item:
                decisions = _with_changes(decisions, changes_of(item[self.image_key].meta.get("fixed", "")))
            dice = decisions["label"].map(self._dice(item, case)).where(decisions["decision"] != "missing")
            record_case(
                self._cases,
                case,
                source=source_path(item, key=self.image_key),
                value=decisions.assign(case=case, dice=dice),
            )

    def _dice(self, item: Mapping[str, Any], case: str) -> dict[int, float]:
        """Return the Dice of each label with the manual one; empty without a manual label map."""
        if self.label_key not in item:
            return {}
        raw, manual = (label_array(item, key, case=case) for key in (self.image_key, self.label_key))
        check_same_grid(raw, manual, case=case, name="manual label map")
        return label_dice(raw.array, manual.array)

    def _finish(self, engine: Engine) -> None:
        """Gather the decisions of all ranks, write the tables and set the metrics."""
        found = [rows for _, rows in gather_cases(self._cases).values()]
        if not found:
            return
        scores = pd.concat(found, ignore_index=True)
        scores.insert(0, "case", scores.pop("case"))
        metrics = _dice_means(scores)
        changes = _changes(scores)
        scores, tables = self._compared(scores.drop(columns="changed_at", errors="ignore"), changes)
        for row in tables["errors"].to_dict("records") if "errors" in tables else ():
            prefix = {"all": "", "verdicts": "verdicts_"}.get(row["kind"])
            metrics |= {f"{prefix}{name}": row[name] for name in _METRICS if prefix is not None}
        engine.state.metrics.update(metrics)
        if is_rank0():
            tables |= {"scores": scores, "summary": _summary(scores)}
            for name in ("scores", "summary", "errors", "agreement", "conflicts"):
                path = self.output_dir / f"{name}.csv"
                path.unlink(missing_ok=True)  # of an earlier evaluation
                if name in tables:
                    write_table(tables[name], path)
            logger.info("%s", ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))

    def _compared(
        self, scores: pd.DataFrame, changes: Mapping[tuple[str, int], tuple[str, int]]
    ) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
        """Return the scores with known errors and verdicts, and the tables of the comparison by name."""
        tables, rows = {}, []
        if self.errors is not None:
            scores = with_errors(scores, self.errors, self.network.organs)
            rows.append(error_rates(scores))
        if self.verdicts is not None:
            merged = consensus(without_outdated(self.verdicts, changes))
            scores = scores.merge(merged[[*KEY, "verdict"]], on=KEY, how="left").fillna({"verdict": ""})
            warn_of_absent(merged, [scores])
            judged = scores[(scores["verdict"] != "") & ~scores["decision"].isin(["missing", "absent"])]
            rows.append(pd.DataFrame([{"kind": "verdicts", **rates(judged, judged["verdict"] == "reject")}]))
            if self.verdicts["reviewer"].nunique() > 1:
                tables = {"agreement": agreement(self.verdicts), "conflicts": conflicts(self.verdicts)}
        return scores, tables | ({"errors": pd.concat(rows, ignore_index=True)} if rows else {})


def _with_changes(decisions: pd.DataFrame, changes: Mapping[int, tuple[str, int]]) -> pd.DataFrame:
    """Add which kind of fixed file changed a label, and when, in seconds since 1970."""
    found = [changes.get(label, ("", 0)) for label in decisions["label"]]
    return decisions.assign(fixed=[kind for kind, _ in found], changed_at=[seconds for _, seconds in found])


def _changes(scores: pd.DataFrame) -> dict[tuple[str, int], tuple[str, int]]:
    """Return what `_with_changes` added, by case and label."""
    if "fixed" not in scores:
        return {}
    rows = scores.loc[scores["fixed"] != "", [*KEY, "fixed", "changed_at"]]
    return {(case, label): (kind, seconds) for case, label, kind, seconds in rows.itertuples(index=False)}


def label_dice(label: np.ndarray, truth: np.ndarray) -> dict[int, float]:
    """Return the Dice of every label but 0 that at least one of two maps of the same shape has, ascending."""
    n = int(max(label.max(initial=0), truth.max(initial=0))) + 1
    true, differs = np.bincount(truth.ravel(), minlength=n), label != truth
    both = true - np.bincount(truth[differs], minlength=n)
    own = both + np.bincount(label[differs], minlength=n)
    return {int(k): float(2 * both[k] / (own[k] + true[k])) for k in np.flatnonzero(own + true) if k}


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
    kept, is_label = scores["decision"] == "keep", ~scores["decision"].isin(["missing", "absent"])
    columns = {
        "labels": is_label,
        "rejected": is_label & ~kept,
        "missing": scores["decision"] == "missing",
        "dice_raw": scores["dice"],
        "dice_kept": scores["dice"].where(kept),
        "dice_background": scores["dice"].where(kept | scores["dice"].isna(), 0),
    }
    how = {name: "mean" if name.startswith("dice") else "sum" for name in columns}
    return scores[["label", "organ"]].assign(**columns).groupby(["label", "organ"]).agg(how).reset_index()
