"""Check a packed bundle without running anything of it: `python -m tools.verify BUNDLE.zip [--sha256 DIGEST]`.

A bundle is code: its configs and scripts run with your rights. This tells what you got, not whether its code is good.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import re
import stat
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import torch
import yaml

from scripts.common.errors import InputError, raise_all, reason
from scripts.common.names import printable
from scripts.common.packed import code_sha256
from tools.pack import REQUIRED, WEIGHTS
from tools.portable import PATTERN, portable_problems

SCHEMA = Path(__file__).with_name("assets") / "metadata_schema.json"
MAX_BYTES = 1 << 33
MAX_TEXT_BYTES = 1 << 24
_KNOWN_CODE = re.compile(r"(?:scripts|monai|torch|ignite)\.")
_KNOWN_IMPORTS = re.compile(r"(?:scripts|monai|torch|ignite|os|numpy|glob)\b")
_IMPORTS = re.compile(r"(?:^\$(?:import|from) +|__import__\W+|import_module\W+)([\w.]+)")
_NAME = re.compile(r"(?P<bundle>.+)_v(?P<version>\d+\.\d+\.\d+[^/]*)\.zip")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:")
logger = logging.getLogger(__name__)


def verify(path: Path, *, sha256: str = "") -> list[str]:
    """Check a zip as MONAI's Model Zoo does, and that it is safe to unpack.

    Args:
        path: `<name>_v<version>.zip`.
        sha256: what the digest of the file must be; "" for any.

    Returns:
        What a user should know: code of other packages that the configs name, and missing weights.

    Raises:
        InputError: lists all problems.
    """
    try:
        content = path.read_bytes()
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{printable(path)}: cannot be read ({reason(error)}); download it again.") from error
    digest = hashlib.sha256(content).hexdigest()
    fix = "do not unpack it, and ask who published it"
    if sha256 and digest != sha256.lower():
        raise InputError(f"{printable(path)}: its SHA-256 is {digest}, not {sha256}; {fix}.")
    raise_all(list(_unsafe_entries(archive)), path, fix)
    named = _NAME.fullmatch(path.name)
    base = {PurePosixPath(entry.filename).parts[0] for entry in archive.infolist()}
    if not named or base != {named["bundle"]}:
        holds = printable(", ".join(sorted(base)))
        raise InputError(f"{printable(path)}: need <name>_v<version>.zip with one folder <name>; it holds {holds}.")
    files = {entry.filename.partition("/")[2]: entry for entry in archive.infolist() if not entry.is_dir()}
    notes, problems = _checked(archive, files, version=named["version"])
    raise_all(problems, path, fix)
    return notes


def _unsafe_entries(archive: zipfile.ZipFile) -> Iterator[str]:
    """Describe entries that unpacking could use to write elsewhere, or to fill the disk."""
    entries = archive.infolist()
    if (size := sum(entry.file_size for entry in entries)) > MAX_BYTES or not entries:
        yield f"unpacks to {size} bytes, expected 1 to {MAX_BYTES}"
    seen: set[str] = set()
    for entry in entries:
        name = printable(entry.filename)
        parts = PurePosixPath(entry.filename).parts
        if entry.filename.startswith("/") or "\\" in entry.filename or ".." in parts or _WINDOWS_DRIVE.match(name):
            yield f"{name}: a path that leaves the folder"
        if stat.S_ISLNK(entry.external_attr >> 16):
            yield f"{name}: a link"
        if entry.filename.casefold() in seen:
            yield f"{name}: is there twice"
        seen.add(entry.filename.casefold())


def _checked(
    archive: zipfile.ZipFile, files: Mapping[str, zipfile.ZipInfo], *, version: str
) -> tuple[list[str], list[str]]:
    """Return notes and problems of the files of a bundle."""
    problems = [f"{name}: missing" for name in REQUIRED if name not in files]
    configs: dict[str, Any] = {}
    for name in (name for name in files if re.fullmatch(r"configs/[^/]+\.json", name)):
        try:
            configs[name] = json.loads(_text(archive, files[name]))
        except (ValueError, RecursionError) as error:
            problems.append(f"{printable(name)}: not JSON ({reason(error)})")
    metadata = configs.pop("configs/metadata.json", {})
    problems += _metadata_problems(metadata, version)
    code = {name.removeprefix("scripts/"): entry for name, entry in files.items() if name.startswith("scripts/")}
    if "scripts_sha256" in metadata:
        digest = code_sha256((name, archive.read(entry)) for name, entry in code.items())
        problems += ["scripts: are not those that it was packed with"] * (digest != metadata["scripts_sha256"])
    for name in (name for name in configs if PurePosixPath(name).match(PATTERN)):
        problems += [f"{name}: not portable: {printable(problem)}" for problem in portable_problems(configs[name])]
    notes = [f"{name} names code of other packages: {target}" for name, target in _foreign_code(configs)]
    if WEIGHTS in files:
        problems += _weights_problems(archive.read(files[WEIGHTS]))
    elif not _is_downloaded(archive, files):
        notes.append(f"no {WEIGHTS}, and large_files.yml does not name it")
    return notes, problems


def _text(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    if entry.file_size > MAX_TEXT_BYTES:
        raise ValueError(f"{entry.file_size} bytes")
    return archive.read(entry).decode("utf-8")


def _metadata_problems(metadata: Any, version: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    found = [f"metadata: {error.json_path} {error.message:.200}" for error in validator.iter_errors(metadata)]
    if not found and (metadata["version"] != version or version not in metadata["changelog"]):
        found.append(
            f"metadata: version {metadata['version']}, the file is named {version}; name both in the changelog"
        )
    return found


def _foreign_code(configs: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield where a config names a component that is neither the bundle's own nor of MONAI, torch and ignite."""
    if isinstance(configs, dict):
        target = configs.get("_target_")
        if isinstance(target, str) and "." in target and not _KNOWN_CODE.match(target):
            yield where, printable(target)
        for key, value in configs.items():
            yield from _foreign_code(value, where or printable(key))
    elif isinstance(configs, str) and configs.startswith("$"):
        for imported in _IMPORTS.findall(configs):
            if not _KNOWN_IMPORTS.match(imported):
                yield where, printable(f"import {imported}")
    elif isinstance(configs, list):
        for value in configs:
            yield from _foreign_code(value, where)


def _weights_problems(content: bytes) -> list[str]:
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever pickled code a hostile file names
        return [f"{WEIGHTS}: not plain weights ({reason(error):.200})"]
    tensors = isinstance(state, dict) and any(isinstance(value, torch.Tensor) for value in state.values())
    return [] if tensors else [f"{WEIGHTS}: holds no weights"]


def _is_downloaded(archive: zipfile.ZipFile, files: Mapping[str, zipfile.ZipInfo]) -> bool:
    """Return whether `large_files.yml` names the weights."""
    if "large_files.yml" not in files:
        return False
    content = yaml.safe_load(_text(archive, files["large_files.yml"]))
    named = content.get("large_files") if isinstance(content, dict) else None
    return any(isinstance(entry, dict) and entry.get("path") == WEIGHTS for entry in named or ())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 1 if a bundle has problems."""
    parser = argparse.ArgumentParser(prog="python -m tools.verify", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="<name>_v<version>.zip")
    parser.add_argument("--sha256", default="", help="digest that its publisher names")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        notes = verify(args.bundle, sha256=args.sha256)
    except InputError as error:
        logger.error("error: %s", error)
        return 1
    for note in notes:
        logger.info("note: %s", note)
    logger.info("%s: files, metadata, code and weights are as packed; its code was not judged", args.bundle)
    return 0


if __name__ == "__main__":
    sys.exit(main())
