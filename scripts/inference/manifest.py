"""The record of a run beside its results: what a lab needs to know a year later."""

from __future__ import annotations

import hashlib
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
from scripts.common.files import file_sha256, write_json
from scripts.common.ranks import is_rank0
from scripts.inference.case_handler import CaseHandler, case_name, decollated, gather_cases, record_case, source_path

FILE = "run.json"


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
        self.path, self.metadata, self.ckpt_path = Path(output_dir) / FILE, metadata, Path(ckpt_path)
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
        self._runs = _read(self.path) if getattr(engine, "keep_earlier", False) else []
        is_gpu = self.device.type == "cuda"
        self._runs.append(
            {
                "bundle": self.metadata.get("name"),
                "version": self.metadata.get("version"),
                "weights": {"file": str(self.ckpt_path), "sha256": _sha256_if_any(self.ckpt_path)},
                "settings": given_settings(sys.argv) if is_bundle_run() else {},
                "libraries": {name: version(name) for name in ("monai", "torch")},
                "device": torch.cuda.get_device_name(self.device) if is_gpu else str(self.device),
                "started": _now(),
                "finished": None,
                "cases": {},
            }
        )
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
        self._runs[-1]["finished"] = _now()
        self._write()

    def _write(self) -> None:
        if is_rank0():
            write_json(self.path, {"runs": self._runs})


def _sha256_if_any(path: Path) -> str | None:
    """Return the SHA-256 of the weights; None without a file, as in federated learning, whose server sends them."""
    return file_sha256(path) if path.is_file() else None


def input_sha256(path: Path) -> str:
    """Return the SHA-256 of a file or, of a DICOM folder, of its files' names and digests as `sha256sum` lists them."""
    if not path.is_dir():
        return file_sha256(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _listed(image: str | Sequence[str]) -> list[str]:
    return [image] if isinstance(image, str) else [str(path) for path in image]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(path: Path) -> list[dict[str, Any]]:
    """Read the records of earlier runs."""
    if not path.exists():
        return []
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        if not all(isinstance(run["cases"], dict) for run in runs):
            raise TypeError("a run has no cases")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not the record of earlier runs ({error}); move it away.") from error
    return runs
