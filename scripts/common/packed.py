"""Whether a config runs with the code and the library versions that it was released with."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError

SCRIPTS = Path(__file__).absolute().parents[1]  # not resolved: in the repository, a link tells the bundle
LIBRARIES = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
logger = logging.getLogger(__name__)


def check_bundle(metadata: Mapping[str, Any]) -> None:
    """Refuse the code of another bundle, and log a warning if code or libraries are not those of the release.

    Bundles name their code `scripts`. Python imports it from the first folder of its path that has one, and once: the
    config of a second bundle in the same process would run with the code of the first.

    Args:
        metadata: of the bundle that the config belongs to.

    Raises:
        InputError: the code lies in a bundle of another name or version.
    """
    beside = SCRIPTS.with_name("configs") / "metadata.json"
    if beside.is_file():
        own = json.loads(beside.read_text(encoding="utf-8"))
        (theirs, ours) = (f"{data.get('name')} {data.get('version')}" for data in (own, metadata))
        if theirs != ours:
            raise InputError(
                f"{SCRIPTS}: is the code of {theirs!r}, and the config is of {ours!r}; run each bundle in a process of "
                "its own, with its own folder first on the Python path."
            )
    if found := _differences(metadata):
        logger.warning("not as released: %s; results may differ", ", ".join(found))


def code_sha256(files: Iterable[tuple[str, bytes]]) -> str:
    """Return a digest of names and contents, which does not depend on their order."""
    digest = hashlib.sha256()
    for name, content in sorted(files):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _differences(metadata: Mapping[str, Any]) -> list[str]:
    """Describe what differs from the metadata."""
    installed = {name: version(name).partition("+")[0] for name in LIBRARIES}
    tested = {name: metadata.get(key, installed[name]) for name, key in LIBRARIES.items()}
    found = [f"{name} {has} instead of {tested[name]}" for name, has in installed.items() if has != tested[name]]
    if "scripts_sha256" in metadata:
        files = (path for path in SCRIPTS.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
        code = code_sha256((path.relative_to(SCRIPTS).as_posix(), path.read_bytes()) for path in files)
        if code != metadata["scripts_sha256"]:
            found.append(f"the code in {SCRIPTS} was changed")
    return found
