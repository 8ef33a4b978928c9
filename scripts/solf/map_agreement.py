"""Agreement of two label maps of the same person, such as those of two models: a filter that needs no thresholds."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import Dataset, MetaTensor
from monai.data.utils import affine_to_spacing

from scripts.cohort.journal import Case
from scripts.common.errors import InputError, raise_all
from scripts.common.files import write_table
from scripts.common.fingerprint import file_state
from scripts.common.grids import Grid, describe_mismatch
from scripts.common.settings import setting_problems
from scripts.scoring.metrics import organ_scores, summarise
from scripts.solf.dictionary import columns_of
from scripts.solf.filter import LabelFilter
from scripts.solf.measuring import Transform
from scripts.solf.parquet import write_parquet
from scripts.solf.tables import IGNORE, pack, unpack
from scripts.solf.workflow import CohortWorkflow

logger = logging.getLogger(__name__)


class MapComparer(CohortWorkflow):
    """Compare each label map of a cohort with another one of the same person.

    Writes `<case>_consensus.nii.gz` (see `compare_case`), `decisions.csv` and `decisions.parquet`, a row per case and
    label that one of the maps has, `summary.csv`, the scores of each organ by `scripts.scoring.metrics.summarise`, in
    which `pred` is the first map, and `failed.csv` if cases failed. A case is compared again if one of its files, the
    transforms, the settings or the code changed.

    Args:
        dataset: cases with `image` and `label`, the two maps, and a `Compose` that reads both.
        postprocessing: writes `pred` as `<case>_consensus.nii.gz`.
        label_table: JSON file of the labels; "" for the 72 organs.
        ignore_id: value of ignored voxels, of the maps and of the consensus.
        min_dice: labels whose Dice is below are rejected.
        options: as `CohortWorkflow`.

    Raises:
        InputError: an option is out of its range, or a case has no other map.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        postprocessing: Transform,
        label_table: str | Path = "",
        ignore_id: int = IGNORE,
        min_dice: float = 0.7,
        **options: Any,
    ) -> None:
        network = LabelFilter(label_table=label_table, ignore_id=ignore_id)
        super().__init__(network=network, dataset=dataset, qc=False, **options)
        raise_all(setting_problems({"min_dice": min_dice}), "agreement of label maps", "correct the settings")
        if alone := next((case["case"] for case in self.cases if "label" not in case), None):
            raise InputError(f"{alone}: has no other label map; set other to a folder of maps with the same names.")
        self.cases = [{**case, "state_of_label": file_state(case["label"])} for case in self.cases]
        self.postprocessing, self.min_dice = postprocessing, min_dice

    def process(self) -> None:
        """Compare and write."""
        settings = {"organs": self.network.organs, "ignore_id": self.network.ignore_id, "min_dice": self.min_dice}
        depends_on = [compare_case, settings, type(self.postprocessing)]
        try:
            self.measure(
                partial(compare_case, transform=self.transform, postprocessing=self.postprocessing, **settings),
                depends_on=depends_on,
                is_finished=lambda case: self._consensus(case["case"]).is_file(),
            )
        finally:
            for name in self.failures:
                self._consensus(name).unlink(missing_ok=True)  # of an earlier run
        write_parquet(self.tables(), self._decisions_file, columns=columns_of("compared"))
        self._write_csv()
        scores = pd.concat(table.drop(columns=["case", "reason"]) for table in self.decisions())
        scores = scores.rename(columns=_COLUMNS_OF_SCORES)
        write_table(summarise(scores), self.output_dir / "summary.csv")
        counts = ", ".join(f"{count} {decision}" for decision, count in scores["decision"].value_counts().items())
        logger.info("labels: %s; wrote %s", counts, self.output_dir / "decisions.csv")

    def table_of(self, payloads: Sequence[tuple[str, bytes]]) -> pd.DataFrame:
        """Turn the results of named cases into one table."""
        return pd.DataFrame(
            [{"case": case, **row} for case, payload in payloads for row in json.loads(unpack(payload).content)]
        )

    def _consensus(self, name: str) -> Path:
        return self.output_dir / f"{name}_consensus.nii.gz"


_COLUMNS_OF_SCORES = {"label": "class_id", "volume_ml": "volume_ml_pred", "other_volume_ml": "volume_ml_label"}


def compare_case(
    case: Case,
    *,
    transform: Transform,
    organs: Mapping[int, str],
    ignore_id: int,
    min_dice: float,
    postprocessing: Transform,
) -> bytes:
    """Read and compare the two maps of a case, and write their consensus.

    The consensus has a label where both maps have it, and 0 where neither has one; it is `ignore_id` where they
    differ, where one of them is ignored, and where a rejected label is.

    Args:
        case: with `image` and `label`, the two maps.
        transform: reads both.
        organs: label id to name.
        ignore_id: value of ignored voxels.
        min_dice: labels whose Dice is below are rejected.
        postprocessing: writes `pred`.

    Returns:
        Rows of `scripts.scoring.metrics.organ_scores` as packed JSON, with `votes`, `decision` and `reason`: `missing`
        is an organ that only the other map has.

    Raises:
        InputError: the maps cannot be read, lie on different grids, or hold labels that `organs` lacks.
    """
    item = transform(case)
    maps = [item["image"], item["label"]]
    grids = [Grid(tuple(volume.shape[1:]), np.asarray(volume.affine, dtype=np.float64)) for volume in maps]
    if mismatch := describe_mismatch(grids[1], grids[0]):
        raise InputError(f"{case['label']}: lies on another grid than {case['image']}: {mismatch}; resample it.")
    arrays = [volume.as_tensor()[0].numpy() for volume in maps]
    ignored = (arrays[0] == ignore_id) | (arrays[1] == ignore_id)
    first, other = (np.where(ignored, 0, array) for array in arrays)
    spacing_mm = affine_to_spacing(maps[0].affine).tolist()
    rows = [_decided(row, min_dice) for row in organ_scores(first, other, spacing_mm=spacing_mm, class_names=organs)]
    rejected = [row["label"] for row in rows if row["decision"] == "reject"]
    agreed = (first == other) & ~ignored & ~np.isin(first, rejected)
    consensus = torch.from_numpy(np.where(agreed, first, np.min_scalar_type(ignore_id).type(ignore_id)))[None]
    postprocessing({**item, "pred": MetaTensor(consensus, affine=maps[0].affine, meta=maps[0].meta)})
    return pack(json.dumps(rows).encode(), sources=maps[0].meta["sources"])


def _decided(row: Mapping[str, Any], min_dice: float) -> dict[str, Any]:
    """Return the scores of an organ with the decision about its label in the first map."""
    decision, reason = "keep", ""
    if not row["volume_ml_pred"]:
        decision, reason = "missing", f"the other map has {row['volume_ml_label']:.4g} ml of it"
    elif row["dice"] < min_dice:
        low = f"Dice {row['dice']:.4g} with the other map below {min_dice:g}"
        decision, reason = "reject", low if row["volume_ml_label"] else "the other map lacks it"
    kept = {name: row[name] for name in ("dice", "surface_dice", "hd95_mm", "asd_mm")}
    volumes = {"volume_ml": row["volume_ml_pred"], "other_volume_ml": row["volume_ml_label"]}
    ends = {"votes": int(decision == "reject"), "decision": decision, "reason": reason}
    return {"label": row["class_id"], "organ": row["organ"], **kept, **volumes, **ends}
