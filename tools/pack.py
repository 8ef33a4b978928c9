"""Pack bundles as the Model Zoo ships them: one self-contained zip each, the same bytes for the same sources.

`python -m tools.pack [NAME …] [--out dist] [--weights | --weights-file MODEL.pt]`
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError, raise_all, reason
from scripts.common.files import atomic_path
from scripts.common.fingerprint import imported_modules, module_file
from scripts.common.locks import FolderLock
from scripts.common.names import printable
from scripts.common.packed import code_sha256
from tools.portable import PATTERN, portable_problems

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = ("LICENSE", "docs/README.md", "configs/metadata.json", "configs/inference.json")
ALWAYS = ("LICENSE", "large_files.yml", "configs/*", "docs/*")
WEIGHTS = "models/model.pt"
METADATA = Path("configs/metadata.json")
EPOCH = (1980, 1, 1, 0, 0, 0)
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:[-+.]?[a-z0-9]+)*", re.ASCII)
_LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")  # to a file; not to a part of the page, nor to a web page
logger = logging.getLogger(__name__)


def named_modules(config: Any) -> set[str]:
    """Return the names of `scripts` that a config uses, at any depth.

    They are values of `_target_` and `command_modules`, and parts of `$` expressions.
    """
    if isinstance(config, list):
        return set().union(*map(named_modules, config))
    if isinstance(config, str) and config.startswith("$"):
        return set(re.findall(r"\bscripts(?:\.\w+)+", config))
    if not isinstance(config, dict):
        return set()
    own = {str(value) for key, value in config.items() if key.split("#")[-1] == "_target_"}
    if isinstance(commands := config.get("command_modules"), list):
        own |= set(map(str, commands))
    return {name for name in own if name.startswith("scripts.")}.union(*map(named_modules, config.values()))


def packed_modules(names: Iterable[str]) -> set[Path]:
    """Return the files of the modules that are named, of all that those import, and their assets.

    Args:
        names: modules, or functions and classes in them.

    Raises:
        InputError: there is no such module, nothing of that name in it, or a module is not Python.
    """
    found = {name: module_file(name, ROOT) for name in names}
    if missing := sorted(name for name, file in found.items() if file is None or not _defines(file, name)):
        raise InputError(f"{', '.join(missing)}: not found below scripts; correct the config or command_modules")
    files = imported_modules([*found.values(), ROOT / "scripts" / "__init__.py"], ROOT)
    assets = {asset for file in files for asset in (file.parent / "assets").rglob("*") if asset.is_file()}
    return files | assets


def _defines(file: Path, name: str) -> bool:
    """Return whether a file is the module of that name, or defines what the name ends in."""
    last = name.rpartition(".")[2]
    source = file.read_text(encoding="utf-8", errors="replace")
    definition = rf"^(?:def|class) {last}\b|^{last} *[:=]"
    return file.name != "__init__.py" and (file.stem == last or bool(re.search(definition, source, re.MULTILINE)))


def contents(bundle: Path, *, weights: bool | Path = False) -> tuple[str, dict[Path, Path]]:
    """Return the name of a bundle's zip, and its files by their paths in it.

    Of `scripts` it takes the modules that the configs name and the `command_modules` of the metadata, with their
    imports.

    Args:
        bundle: folder of the bundle, its `scripts` a link.
        weights: include `models/model.pt`, or this file as such; and the training spectrum, if that is beside it.

    Raises:
        InputError: lists all problems: files are missing or links out of the bundle, configs are not JSON or name what
            does not exist, pages link to what is not packed, the version is none, the weights do not load.
    """
    if not (bundle / METADATA).is_file():
        raise InputError(f"{bundle}: no configs/metadata.json, so this is not a bundle; give the name of a folder.")
    found = {file.relative_to(bundle): file for pattern in ALWAYS for file in bundle.glob(pattern) if file.is_file()}
    problems = [f"{name}: missing" for name in REQUIRED if Path(name) not in found]
    model = bundle / WEIGHTS if weights is True else weights
    if model and not model.is_file():
        problems.append(f"{WEIGHTS if weights is True else printable(model)}: missing")
    problems += _file_problems(bundle, found)
    configs = {name: _read_json(file) for name, file in found.items() if name.suffix == ".json"}
    problems += [f"{name}: {config}" for name, config in configs.items() if isinstance(config, str)]
    metadata = configs[METADATA]
    if isinstance(metadata, dict):
        problems += _metadata_problems(metadata)
    for name, config in configs.items():
        if name.match(PATTERN):
            problems += [f"{name}: not portable: {problem}" for problem in portable_problems(config)]
        try:
            found |= {file.relative_to(ROOT): file for file in packed_modules(named_modules(config))}
        except InputError as error:
            problems.append(f"{name}: {error}")
    if model and not problems:
        problems += _weights_problems(bundle, model)
        found[Path(WEIGHTS)] = model
        spectrum = metadata.get("training_spectrum")
        if spectrum and model.with_name(Path(spectrum).name).is_file():
            found[Path(spectrum)] = model.with_name(Path(spectrum).name)
    raise_all(problems, bundle, "nothing was packed, correct these files")
    return f"{bundle.name}_v{metadata['version']}.zip", found


def _file_problems(bundle: Path, found: Mapping[Path, Path]) -> list[str]:
    problems = []
    for name, file in found.items():
        if not file.resolve().is_relative_to(bundle.resolve()):
            problems.append(f"{printable(name)}: a link to a file outside of the bundle")
        if printable(name) != str(name):
            problems.append(f"{printable(name)}: a name that cannot be printed")
        if name.suffix == ".md":
            text = file.read_text(encoding="utf-8", errors="replace")
            dead = [link for link in _LINK.findall(text) if Path(os.path.normpath(name.parent / link)) not in found]
            problems += [f"{name}: links to {link}, which is not packed" for link in dict.fromkeys(dead)]
    return problems


def _read_json(file: Path) -> Any:
    """Return the content of a config, or why it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"not JSON ({reason(error)})"
    return content if isinstance(content, dict) else "not a mapping of names to settings"


def _metadata_problems(metadata: Mapping[str, Any]) -> list[str]:
    version, commands = metadata.get("version"), metadata.get("command_modules")
    problems = []
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        problems.append(f"configs/metadata.json: version is {version!r:.100}, need one such as 1.2.3")
    if not isinstance(commands, list) or not all(str(name).startswith("scripts.") for name in commands):
        problems.append(f"configs/metadata.json: command_modules is {commands!r:.100}, need a list of modules")
    return problems


def _weights_problems(bundle: Path, path: Path) -> list[str]:
    """Load the weights into the network of inference.json, as a user of the bundle does."""
    from monai.bundle import ConfigParser

    from scripts.models.weights import load_weights

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    try:
        load_weights(parser.get_parsed_content("network_def"), path)
    except (ValueError, RuntimeError, LookupError) as error:  # MONAI's, of components
        return [reason(error)]
    return []


def write(name: str, files: Mapping[Path, Path], out_dir: Path) -> Path:
    """Write a zip with one base folder, the name of the bundle; returns its path."""
    path = out_dir / name
    base = name.rpartition("_v")[0]
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, file in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{base}/{inner.as_posix()}", EPOCH)
            entry.external_attr = 0o644 << 16
            content = file.read_bytes() if inner != METADATA else _with_digest(file, files)
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return path


def _with_digest(metadata: Path, files: Mapping[Path, Path]) -> bytes:
    """Return the metadata with the digest of the packed code, for `scripts.common.packed`."""
    scripts = {inner.relative_to("scripts"): file for inner, file in files.items() if inner.parts[0] == "scripts"}
    digest = code_sha256((inner.as_posix(), file.read_bytes()) for inner, file in scripts.items())
    content = {**json.loads(metadata.read_text(encoding="utf-8")), "scripts_sha256": digest}
    return json.dumps(content, indent=4).encode() + b"\n"


def pack(bundle: Path, out_dir: Path, *, weights: bool | Path = False) -> Path:
    """Write `<name>_v<version>.zip` and return its path; see `contents`."""
    name, files = contents(bundle, weights=weights)
    return write(name, files, out_dir)


def pack_all(names: Sequence[str], out_dir: Path, *, weights: bool | Path = False) -> list[Path]:
    """Pack bundles after all of them have been checked.

    Args:
        names: folders below bundles/; all if empty.
        out_dir: folder for the zips.
        weights: see `contents`; a file is of one bundle.

    Raises:
        InputError: lists the problems of all bundles; nothing was written.
    """
    if isinstance(weights, Path) and len(names) != 1:
        raise InputError(f"{printable(weights)}: weights of one bundle; give its name alone.")
    known = sorted(folder.name for folder in (ROOT / "bundles").iterdir() if folder.is_dir())
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{', '.join(unknown)}: no such bundle; give some of {', '.join(known)}")
    planned, problems = [], []
    for name in dict.fromkeys(names or known):
        try:
            planned.append(contents(ROOT / "bundles" / name, weights=weights))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    with FolderLock(out_dir, setting="out"):
        return [write(name, files, out_dir) for name, files in planned]


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which weights are packed."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--weights", action="store_true", help="include models/model.pt, which must be there")
    group.add_argument("--weights-file", type=Path, metavar="MODEL.pt", help="include this file as models/model.pt")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 where nothing was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="folders below bundles/ (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the zips (default: dist)")
    add_weights_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for path in pack_all(args.names, args.out, weights=args.weights_file or args.weights):
            logger.info("%s  %.0f kB", path, path.stat().st_size / 1e3)
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return 2
    except (KeyboardInterrupt, ValueError) as error:  # zipfile raises the latter when it closes after the former
        if not isinstance(error.__context__ if isinstance(error, ValueError) else error, KeyboardInterrupt):
            raise
        logger.error("stopped; run again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
