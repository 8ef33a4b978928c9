"""Percentiles of a segmentation's organs in the cohort that a label filter was fitted to."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scripts.common.errors import InputError
from scripts.common.grids import GridArray
from scripts.common.organs import foreground_classes, organ_name
from scripts.models.weight_files import read_file
from scripts.solf.features import shape_columns
from scripts.solf.stored import contradiction, stored_thresholds
from scripts.solf.thresholds import FEATURES, LEVELS, Thresholds

logger = logging.getLogger(__name__)

_FEATURE_OF = {"volume": "volume_mm3", "sphericity": "sphericity", "eccentricity": "eccentricity"}


class CohortPercentiles:
    """Measure volume and shape of each organ as the label filter does, and rank them in its cohort, 0 to 100.

    Args:
        path: the `model.pt` of a fit of solf_filter.
        class_names: class id to organ, such as the metadata's `channel_def`. Organs are matched by name, whatever the
            order of its words; those that the filter lacks have no percentiles.

    Raises:
        InputError: the file is not that of a fit, its fit needs covariates, or it knows none of the organs.
    """

    columns = tuple(f"{name}_percentile" for name in _FEATURE_OF)

    def __init__(self, path: str | Path, class_names: Mapping[int, str]) -> None:
        thresholds = _read_thresholds(Path(path))
        rows = {organ_name(organ): row for row, organ in enumerate(thresholds.organs.values())}
        names = {class_id: organ_name(name) for class_id, name in foreground_classes(class_names).items()}
        self.rows = {class_id: rows[name] for class_id, name in names.items() if name in rows}
        if not self.rows:
            raise InputError(f"{path}: its label table has none of {', '.join(names.values())}; leave it out.")
        if unknown := [name for class_id, name in names.items() if class_id not in self.rows]:
            logger.info("%s: no percentiles of %s, which it does not know", path, ", ".join(unknown))
        self.quantiles = thresholds.quantiles[:, :, [FEATURES.index(name) for name in _FEATURE_OF.values()]]

    def __call__(self, label_map: GridArray) -> dict[int, dict[str, float]]:
        """Return class id to column to percentile; nothing, and a line in the log, on a sheared grid."""
        try:
            measured = shape_columns(label_map.array, label_map.affine)
        except InputError as error:  # a CT of a tilted gantry
            logger.warning("no percentiles: %s", error)
            return {}
        values = np.stack([measured[name] for name in _FEATURE_OF.values()], axis=1)
        return {
            int(class_id): dict(zip(self.columns, self._ranked(self.rows[class_id], own), strict=True))
            for class_id, own in zip(measured["label"], values, strict=True)
            if class_id in self.rows
        }

    def _ranked(self, row: int, values: np.ndarray) -> list[float]:
        return [float(np.interp(v, q, 100 * LEVELS)) for v, q in zip(values, self.quantiles[:, row].T, strict=True)]


def _read_thresholds(path: Path) -> Thresholds:
    if not path.is_file():
        raise InputError(f"{path}: no such file; set solf_reference to the model.pt of a fit of solf_filter.")
    state = read_file(path)
    try:
        organs = {int(label): str(name) for label, name in json.loads(state["table"].numpy().tobytes())}
        problem = contradiction(state, organs)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: not a fitted label filter; give the model.pt of a fit of solf_filter.") from error
    if problem:
        raise InputError(f"{path}: not the thresholds of a fit: {problem}; fit again.")
    thresholds = stored_thresholds(state, organs)
    if thresholds.norms is not None:
        raise InputError(f"{path}: was fitted with covariates, which are not known here; give a fit without.")
    return thresholds
