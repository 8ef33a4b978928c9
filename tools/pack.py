"""Pack bundles as the Model Zoo ships them: one self-contained zip each, the same bytes for the same sources.

`python -m tools.pack [NAME …] [--out dist] [--weights]`
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError
from scripts.common.files import atomic_path
from scripts.common.fingerprint import imported_modules, module_file

ROOT = Path(__file__).resolve().parents[1]
ALWAYS = ("LICENSE", "large_files.yml", "configs/*", "docs/*")
WEIGHTS = ("models/model.pt", "models/model.ts")
EPOCH = (1980, 1, 1, 0, 0, 0)
logger = logging.getLogger(__name__)


def named_modules(config: Any) -> set[str]:
    """Return the names of `scripts` that a config instantiates: the values of `_target_`, at any depth."""
    if isinstance(config, list):
        return set().union(*map(named_modules, config))
    if not isinstance(config, dict):
        return set()
    own = {str(value) for key, value in config.items() if key.split("#")[-1] == "_target_"}
    return {name for name in own if name.startswith("scripts.")}.union(*map(named_modules, config.values()))


def packed_modules(names: Iterable[str]) -> set[Path]:
    """Return the files of the modules that are named, of all that those import, and their assets.

    Args:
        names: modules, or functions and classes in them.

    Raises:
        InputError: there is no such module.
    """
    found = {name: module_file(name, ROOT) for name in names}
    if missing := sorted(name for name, file in found.items() if file is None or file.name == "__init__.py"):
        raise InputError(f"{', '.join(missing)}: no such module below scripts; correct the config or command_modules.")
    files = imported_modules([*found.values(), ROOT / "scripts" / "__init__.py"], ROOT)
    assets = {asset for file in files for asset in (file.parent / "assets").rglob("*") if asset.is_file()}
    return files | assets


def pack(bundle: Path, out_dir: Path, *, weights: bool = False) -> Path:
    """Write `<name>_v<version>.zip` with one base folder `<name>`.

    Of `scripts` it takes the modules that the configs name and the `command_modules` of the metadata, with their
    imports.

    Args:
        bundle: folder of the bundle, its `scripts` a link.
        out_dir: folder for the zip.
        weights: include `models/model.pt` and `model.ts` if they exist.

    Returns:
        Path of the zip.

    Raises:
        InputError: the bundle has no metadata, or names a module that does not exist.
    """
    metadata_file = bundle / "configs" / "metadata.json"
    if not metadata_file.is_file():
        raise InputError(f"{bundle}: no configs/metadata.json, so this is not a bundle; give the name of a folder.")
    metadata = json.loads(metadata_file.read_text(encoding="utf-8"))
    patterns = ALWAYS + (WEIGHTS if weights else ())
    files = [file for pattern in patterns for file in bundle.glob(pattern) if file.is_file()]
    contents = {file.relative_to(bundle): file for file in files}
    configs = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.suffix == ".json"]
    modules = set(metadata["command_modules"]).union(*map(named_modules, configs))
    contents |= {file.relative_to(ROOT): file for file in packed_modules(modules)}
    path = out_dir / f"{bundle.name}_v{metadata['version']}.zip"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(contents.items()):
            entry = zipfile.ZipInfo(f"{bundle.name}/{name.as_posix()}", EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Pack the named bundles, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="folders below bundles/ (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the zips (default: dist)")
    parser.add_argument("--weights", action="store_true", help="include models/model.pt")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = args.names or sorted(folder.name for folder in (ROOT / "bundles").iterdir() if folder.is_dir())
    for name in names:
        path = pack(ROOT / "bundles" / name, args.out, weights=args.weights)
        logger.info("%s  %.0f kB", path, path.stat().st_size / 1e3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
