"""Cleaning the label maps of a cohort with a fitted filter."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.data import Dataset

from scripts.cohort.journal import Case
from scripts.common.files import write_json
from scripts.common.fingerprint import file_state
from scripts.inference.manifest import RUN_FILE, new_run, now, read_runs
from scripts.models.weights import load_weights
from scripts.solf.covariates import check_coded, warn_of_unknown
from scripts.solf.filter import LabelFilter, clean_case, require_fit
from scripts.solf.fixing import changes_of
from scripts.solf.measuring import Transform
from scripts.solf.tables import unpack
from scripts.solf.thresholds import readable, summary
from scripts.solf.verdicts import consensus, settled, warn_of_absent, without_outdated
from scripts.solf.workflow import CohortWorkflow, refuse_folder

logger = logging.getLogger(__name__)

_LISTED_NAMES = 5
_SUSPICIOUS_SHARE = 0.25  # of the labels; a filter that fits the cohort rejects a few percent


class CohortCleaner(CohortWorkflow):
    """Clean every label map of a cohort, on all cores or a cluster.

    Writes the same label maps as the bundle's evaluator, `decisions.csv` and `decisions.parquet` (a row per case and
    label), `thresholds.json`, `run.json` as `scripts.inference.manifest.RunManifest`, `failed.csv` if cases failed,
    which then have no label map, and, if wanted, the QC report.

    Args:
        network: the label filter; its weights are loaded here.
        dataset: cases and the transforms that end in `scripts.solf.transforms.ShapeFeaturesd`.
        postprocessing: writes `pred` as `<case>_cleaned.nii.gz`.
        ckpt_path: file of the fitted filter.
        metadata: of the bundle, for `run.json`; None to write no such file.
        verdicts: of `scripts.solf.verdicts.read_verdicts`, the same that `add_verdicts` added to the cases.
        qc: whether to write the report.
        options: as `CohortWorkflow`.
    """

    def __init__(
        self,
        *,
        network: LabelFilter,
        dataset: Dataset,
        postprocessing: Transform,
        ckpt_path: str | Path,
        metadata: Mapping[str, Any] | None = None,
        verdicts: pd.DataFrame | None = None,
        qc: bool | str = False,
        **options: Any,
    ) -> None:
        super().__init__(network=network, dataset=dataset, qc=qc, **options)
        self.postprocessing, self.ckpt_path, self.metadata = postprocessing, Path(ckpt_path), metadata
        refuse_folder(self.output_dir / RUN_FILE)
        self.all_verdicts = verdicts

    def process(self) -> None:
        """Clean and write, and record the run once it is finished.

        Raises:
            InputError: the weights are not those of a fitted filter with this label table, no case was cleaned, or
                `run.json` is something else.
        """
        require_fit(self.ckpt_path)
        if self.metadata is None:
            self._clean()
            return
        path = self.output_dir / RUN_FILE
        runs = [*read_runs(path), new_run(self.metadata, self.ckpt_path, torch.device("cpu"))]
        self._clean()
        runs[-1] |= {"finished": now(), "cases": {} if self.aggregate_only else self._input_sums()}
        write_json(path, {"runs": runs})

    def _clean(self) -> None:
        load_weights(self.network, self.ckpt_path)
        logger.info("%s: %s", self.ckpt_path, summary(self.network.thresholds))
        self._check_covariates()
        light = _without_quantiles(self.network)
        task = partial(clean_case, transform=self.transform, network=light, postprocessing=self.postprocessing)
        depends_on = [clean_case, light, type(self.postprocessing)]
        states = {case["case"]: file_state(self._cleaned(case["case"])) for case in self.cases}
        try:
            self.measure(task, depends_on=depends_on, is_finished=self._is_written)
        finally:
            if self._journal:
                self._remove_stale(states)
        write_json(self.output_dir / "thresholds.json", readable(self.network.thresholds))
        if self.all_verdicts is not None:
            self.verdicts = consensus(without_outdated(self.all_verdicts, self.changes))
        counts = self.write_decisions()
        if self.verdicts is not None:
            warn_of_absent(self.verdicts, self.decisions())
        if self.aggregate_only:
            self.write_aggregate()
        else:
            self._write_csv()
        numbers = ", ".join(f"{count} {decision}" for decision, count in sorted(counts.items()))
        wrote = "aggregate" if self.aggregate_only else "decisions.csv"
        logger.info("labels: %s; wrote %s", numbers, self.output_dir / wrote)
        labels = counts.total() - counts["missing"]
        if counts["reject"] > _SUSPICIOUS_SHARE * labels:
            share = 100 * counts["reject"] / labels
            question = "were the thresholds fitted to maps of the same labels and field of view?"
            logger.warning("%.0f %% of all labels were rejected: %s", share, question)
        if self.qc:
            self.report()

    def _input_sums(self) -> dict[str, dict[str, str]]:
        """Return path and SHA-256 of the label map of each case that was cleaned here, by this or an earlier run."""
        done = {case["case"]: case for case in self.cases if case["case"] not in self.failures}
        payloads = self._journal.payloads(done.values())
        return {name: {done[name]["image"]: unpack(payload).sha256} for name, payload in payloads}

    def _check_covariates(self) -> None:
        """Refuse covariates that the filter cannot use, and name cases without them.

        Raises:
            InputError: the filter needs covariates that there are not.
        """
        norms = self.network.thresholds.norms
        if norms is None:
            if self.covariates is not None:
                logger.warning("covariates: the filter was fitted without; they show drift in the report alone")
            return
        if self.covariates is None:
            norms.designs([], None)
        check_coded(self.covariates, norms.coding)
        warn_of_unknown(self.covariates, norms.coding, self.cases)

    def _is_written(self, case: Case) -> bool:
        """Return whether a case's cleaned map still exists, or the case is dropped and has none."""
        if self._cleaned(case["case"]).is_file():
            return True
        if self.network.rejected != "drop_case":
            return False
        [(_, payload)] = self._journal.payloads([case])
        result, verdicts = unpack(payload), case.get("verdicts", "")
        if verdicts and case.get("fixed"):
            verdicts = settled(verdicts, changes_of(result.fixed))
        decisions = self.network.decide(result.features, verdicts, case.get("covariates", ""))
        return (decisions["decision"] == "drop").any()

    def _remove_stale(self, states: Mapping[str, list[Any]]) -> None:
        """Remove the maps of cases that failed now, and of an earlier run's whose file is gone; log what was removed.

        A map is removed only with proof that it was written here: the journal holds its case, or it changed meanwhile.

        Args:
            states: `file_state` of the map of each case before this run.
        """
        cases = {case["case"] for case in self.cases}
        owner = f"{type(self).__name__} "
        ours = {name: path for name, (path, who) in self._journal.earlier().items() if who.startswith(owner)}
        before = {name for name, state in states.items() if len(state) > 1}
        gone = {name for name, path in ours.items() if name not in cases and not Path(path).exists()}
        changed = {name for name in self.failures if file_state(self._cleaned(name)) != states[name]}
        stale = gone | changed | (self.failures.keys() & ours.keys())
        before |= {name for name in gone if self._cleaned(name).is_file()}
        for name in stale:
            self._cleaned(name).unlink(missing_ok=True)
        self._journal.forget(stale)
        left = {name for name in before if self._cleaned(name).is_file()}
        _name_cases("removed %d label maps of earlier runs, of cases gone, dropped or failed: %s", before - left)
        _name_cases("left %d label maps of failed cases, which no run here wrote: %s", left & self.failures.keys())
        others = {name for name in ours.keys() - cases - gone if self._cleaned(name).is_file()}
        _name_cases("left %d label maps of earlier runs that are not part of this input: %s", others)

    def _cleaned(self, name: str) -> Path:
        return self.output_dir / f"{name}_cleaned.nii.gz"


def _name_cases(message: str, names: Iterable[str]) -> None:
    """Log a warning with the number of cases and the first of their names, if there are any."""
    if found := sorted(names):
        logger.warning(message, len(found), ", ".join([*found[:_LISTED_NAMES], "..."][: len(found)]))


def _without_quantiles(network: LabelFilter) -> LabelFilter:
    """Return the filter without the cohort's quantiles and contacts, large to send and only needed for the tables."""
    light = copy.deepcopy(network)
    light.quantiles = torch.full_like(network.quantiles[:1], torch.nan)
    light.contact_percent = torch.full_like(network.contact_percent[:1], torch.nan)
    return light
