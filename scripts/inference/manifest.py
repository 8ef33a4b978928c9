"""The record of a run beside its results: what a lab needs to know a year later."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.common.command_line import given_settings
from scripts.common.errors import InputError, is_bundle_run
from scripts.common.files import file_sha256, input_sha256, write_json
from scripts.common.ranks import is_rank0
from scripts.inference.case_handler import CaseHandler, case_name, decollated, gather_cases, record_case, source_path

RUN_FILE = "run.json"


class RunManifest(CaseHandler):
    """Write `run.json`: a record of each run into the folder, the last one at the end.

    A record has the bundle and its version, the weights with their SHA-256, what the command line set, the versions of
    MONAI and torch, the device, the times in UTC, and each finished case with the SHA-256 of its input files. It is
    written anew after each case, so that a killed run leaves it too.

    Args:
        output_dir: folder of the results.
        metadata: of the bundle.
        ckpt_path: file of the weights.
        device: the network's.

    Raises:
        InputError: when the run starts, if `run.json` is not what this handler writes.
    """

    def __init__(
        self, output_dir: str | Path, *, metadata: Mapping[str, Any], ckpt_path: str | Path, device: Any = "cpu"
    ) -> None:
        super().__init__()
        self.path, self.metadata, self.ckpt_path = Path(output_dir) / RUN_FILE, metadata, Path(ckpt_path)
        self.device = torch.device(device)
        self._runs: list[dict[str, Any]] = []
        self._inputs: dict[str, Sequence[str]] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`, after what loads the weights."""
        engine.add_event_handler(Events.STARTED, self._open)
        super().attach(engine)

    def _open(self, engine: Engine) -> None:
        """Read the records of earlier runs and begin a new one."""
        cases = getattr(engine.state.dataloader.dataset, "data", [])
        self._inputs = {case["case"]: _listed(case["image"]) for case in cases if "case" in case and "image" in case}
        self._runs = read_runs(self.path) if getattr(engine, "keep_earlier", False) else []
        self._runs.append(new_run(self.metadata, self.ckpt_path, self.device))
        self._write()

    def __call__(self, engine: Engine) -> None:
        """Record the cases of one iteration."""
        for item, _ in decollated(engine):
            case, source = case_name(item), source_path(item)
            sums = {path: input_sha256(Path(path)) for path in self._inputs.get(case, [source] if source else [])}
            record_case(self._cases, case, source=source, value=sums)
            self._runs[-1]["cases"][case] = sums
        self._write()

    def _finish(self, _: Engine) -> None:
        """Add the cases of the other ranks and the time."""
        self._runs[-1]["cases"] = {case: sums for case, (_, sums) in gather_cases(self._cases).items()}
        self._runs[-1]["finished"] = now()
        self._write()

    def _write(self) -> None:
        if is_rank0():
            write_json(self.path, {"runs": self._runs})


def new_run(metadata: Mapping[str, Any], ckpt_path: Path, device: torch.device) -> dict[str, Any]:
    """Return the record of a run that begins."""
    return {
        "bundle": metadata.get("name"),
        "version": metadata.get("version"),
        "weights": {"file": str(ckpt_path), "sha256": _sha256_if_any(ckpt_path)},
        "settings": given_settings(sys.argv) if is_bundle_run() else {},
        "libraries": {name: version(name) for name in ("monai", "torch")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "started": now(),
        "finished": None,
        "cases": {},
    }


def _sha256_if_any(path: Path) -> str | None:
    """Return the SHA-256 of the weights; None without a file, as in federated learning, whose server sends them."""
    return file_sha256(path) if path.is_file() else None


def _listed(image: str | Sequence[str]) -> list[str]:
    return [image] if isinstance(image, str) else [str(path) for path in image]


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Read the records of earlier runs; none without a file.

    Raises:
        InputError: the file is something else.
    """
    if not path.exists():
        return []
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        if not all(isinstance(run["cases"], dict) for run in runs):
            raise TypeError("a run has no cases")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not the record of earlier runs ({error}); move it away.") from error
    return runs
