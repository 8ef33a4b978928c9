"""Pack bundles as the Model Zoo ships them: one self-contained zip each, the same bytes for the same sources.

`python -m tools.pack [NAME …] [--out dist] [--weights]`
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import re
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
MODULE_NAME = re.compile(r"\bscripts((?:\.[a-z_][a-z0-9_]*)+)")
ALWAYS = ("LICENSE", "large_files.yml", "configs/*", "docs/*")
WEIGHTS = ("models/model.pt", "models/model.ts")
EPOCH = (1980, 1, 1, 0, 0, 0)
logger = logging.getLogger(__name__)


def module_file(dotted: str) -> Path | None:
    """Return the file of the longest module at the start of `scripts.a.b.Name`, or None."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:end])
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def imported(file: Path) -> set[Path]:
    """Return the files of `scripts` that a module imports, at its top or inside functions."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    files = {module_file(name) for name in names if name.split(".")[0] == "scripts"}
    return {found for found in files if found}


def reachable(texts: Iterable[str]) -> set[Path]:
    """Return the files of `scripts` that texts name as `scripts.module`, with all that those import, and their assets.

    Args:
        texts: contents of configs and docs.
    """
    named = {match.group(0) for text in texts for match in MODULE_NAME.finditer(text)}
    todo = [found for found in map(module_file, named) if found]
    files: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in files:
            files.add(file)
            packages = [parent / "__init__.py" for parent in file.relative_to(ROOT).parents]
            todo += [ROOT / init for init in packages if (ROOT / init).is_file()]
            todo += imported(file)
    assets = {asset for file in files for asset in (file.parent / "assets").rglob("*") if asset.is_file()}
    return files | assets


def pack(bundle: Path, out_dir: Path, *, weights: bool = False) -> Path:
    """Write `<name>_v<version>.zip` with one base folder `<name>`.

    Args:
        bundle: folder of the bundle, its `scripts` a link.
        out_dir: folder for the zip.
        weights: take `models/model.pt` and `model.ts` along where they are.

    Returns:
        Path of the zip.

    Raises:
        ValueError: the bundle has no metadata.
    """
    metadata = bundle / "configs" / "metadata.json"
    if not metadata.is_file():
        raise ValueError(f"{bundle}: no configs/metadata.json, so this is no bundle; give the name of a folder.")
    version = json.loads(metadata.read_text(encoding="utf-8"))["version"]
    patterns = ALWAYS + (WEIGHTS if weights else ())
    files = [file for pattern in patterns for file in bundle.glob(pattern) if file.is_file()]
    contents = {file.relative_to(bundle): file for file in files}
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in (".json", ".md")]
    contents |= {file.relative_to(ROOT): file for file in reachable(texts)}
    path = out_dir / f"{bundle.name}_v{version}.zip"
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
    parser.add_argument("--weights", action="store_true", help="take models/model.pt along")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = args.names or sorted(folder.name for folder in (ROOT / "bundles").iterdir() if folder.is_dir())
    for name in names:
        path = pack(ROOT / "bundles" / name, args.out, weights=args.weights)
        logger.info("%s  %.0f kB", path, path.stat().st_size / 1e3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
