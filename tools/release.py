"""Make a release of all bundles: `make release`, or `python -m tools.release [NAME …] [--out dist] [--weights]`.

Beside the zips of `tools.pack` it writes `model_info.json` (name, SHA-1 and source of each zip, as in MONAI's Model
Zoo), `SHA256SUMS` for `sha256sum --check`, and `<zip>.cdx.json`, the packages that a bundle needs as a CycloneDX SBOM.
`tools.verify` checks each zip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from scripts.common.errors import InputError
from scripts.common.files import write_json, write_text
from scripts.common.packed import LIBRARIES
from tools.pack import METADATA, ROOT, add_weights_arguments, pack_all
from tools.verify import verify

logger = logging.getLogger(__name__)


def release(names: Sequence[str], out_dir: Path, *, weights: bool | Path = False) -> list[Path]:
    """Pack, check and describe bundles, and return the zips.

    Args:
        names: as `tools.pack.pack_all`.
        out_dir: folder of the release.
        weights: as `tools.pack.contents`.

    Raises:
        InputError: a bundle has problems.
    """
    paths = pack_all(names, out_dir, weights=weights)
    for path in paths:
        for note in verify(path):
            logger.info("%s: %s", path.name, note)
        write_text(path.with_name(f"{path.name}.cdx.json"), sbom(_metadata(path)))
    sha1 = {path.name: hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest() for path in paths}
    write_json(out_dir / "model_info.json", {name: {"checksum": sum_, "source": ""} for name, sum_ in sha1.items()})
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    write_text(out_dir / "SHA256SUMS", "".join(sums))
    return paths


def sbom(metadata: Mapping[str, Any]) -> str:
    """Return the packages of a bundle's metadata as a CycloneDX 1.6 document; the same for the same metadata."""
    versions = {name: metadata[key] for name, key in LIBRARIES.items()} | metadata["required_packages_version"]
    bundle = Component(
        name=metadata["name"],
        version=metadata["version"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"{metadata['name']} {metadata['version']}",
        licenses=[DisjunctiveLicense(id="Apache-2.0")],
    )
    bom = Bom(components=[_component(name, version) for name, version in versions.items()])
    bom.metadata.component = bundle
    bom.register_dependency(bundle, bom.components)
    content = json.loads(JsonV1Dot6(bom).output_as_string())
    del content["serialNumber"], content["metadata"]["timestamp"]  # random, and the time of day
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _component(name: str, version: str) -> Component:
    url = PackageURL("pypi", name=name.lower(), version=version)
    return Component(name=name, version=version, type=ComponentType.LIBRARY, purl=url, bom_ref=str(url))


def _metadata(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(f"{path.name.rpartition('_v')[0]}/{METADATA.as_posix()}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 if nothing was released."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="folders below bundles/ (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the release (default: dist)")
    add_weights_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for path in release(args.names, args.out, weights=args.weights_file or args.weights):
            logger.info("%s  %.0f kB", path, path.stat().st_size / 1e3)
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
