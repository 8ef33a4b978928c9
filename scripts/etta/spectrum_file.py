"""The file of the training images' spectrum, which a training writes beside the weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.transforms import Compose

from scripts.common.errors import InputError
from scripts.common.files import write_json
from scripts.common.names import printable
from scripts.etta.spectrum import FREQUENCIES, TrainingSpectrum

NAME = "spectrum.json"
MAX_CASES = 20
logger = logging.getLogger(__name__)


class SpectrumFile:
    """The spectrum of the training images as the network sees them, and the file that holds it.

    Args:
        cases: of the training; of more than 20, as many, evenly spaced.
        transforms: the deterministic ones, which put an image on the network's grid.
        path: file to write, JSON.
    """

    def __init__(self, cases: Sequence[Mapping[str, Any]], transforms: Sequence[Any], path: str | Path) -> None:
        chosen = np.linspace(0, len(cases) - 1, min(len(cases), MAX_CASES)).round().astype(int)
        self.cases, self.transform, self.path = [cases[n] for n in chosen], Compose(transforms), path

    def write(self) -> None:
        """Measure the spectrum and write it."""
        spectrum = TrainingSpectrum.of(self.transform(dict(case))["image"] for case in self.cases)
        numbers = {name: _without_nan(getattr(spectrum, name)) for name in ("mean", "sd")}
        write_json(self.path, {"log_power": numbers, "cases": spectrum.cases})
        logger.info("wrote %s: the spectrum of %d training images", self.path, spectrum.cases)


class SpectrumWriter:
    """Write the spectrum when a training has run all its epochs; once if it goes on in rounds, as federated ones do."""

    def __init__(self, file: SpectrumFile) -> None:
        self.file, self.is_written = file, False

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write it."""
        if not self.is_written and engine.state.epoch == engine.state.max_epochs:
            self.file.write()
            self.is_written = True


def read_spectrum(path: str | Path | None) -> TrainingSpectrum | None:
    """Read what `SpectrumFile` wrote.

    Args:
        path: the file, or the weights beside which it lies; None for none.

    Returns:
        None, with a warning, if the file is not there.

    Raises:
        InputError: the file has other content.
    """
    if path is None:
        return None
    path = Path(path)
    path = path if path.suffix == ".json" else path.with_name(NAME)
    if not path.is_file():
        logger.warning(
            "%s is missing, so the input is adapted by gammas alone. `run write_spectrum --config_file "
            "configs/train.json` writes it from the training images.",
            printable(path),
        )
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        mean, sd = (np.array(content["log_power"][name], dtype=np.float64) for name in ("mean", "sd"))
        cases = int(content["cases"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{printable(path)} is no spectrum of training images ({error}): write it anew.") from error
    if mean.ndim != 3 or mean.shape != sd.shape or mean.shape[2] != FREQUENCIES:
        raise InputError(f"{printable(path)} has numbers of shape {mean.shape} and {sd.shape}: write it anew.")
    return TrainingSpectrum(mean, sd, cases)


def _without_nan(numbers: np.ndarray) -> list:
    """Turn an array into lists, with None for NaN, which is no JSON."""
    rounded = np.round(numbers, 6)
    return np.where(np.isnan(rounded), None, rounded.astype(object)).tolist()
