"""Upload a packed bundle to the Hugging Face Hub: `python -m tools.hub BUNDLE.zip USER/NAME [--tag] [--public]`.

It needs `pip install huggingface_hub`, and a token as that package describes. MONAI's `push_to_hf_hub` copies
`docs/README.md` to the top folder, where its links and images do not lead anywhere; and of a bundle in this repository
it would upload no code, because `scripts` is a link there.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from monai.bundle import push_to_hf_hub
from monai.utils import OptionalImportError

from scripts.common.errors import InputError
from tools.verify import verify

_LINK = re.compile(r"\]\((?!\w+:|#)([^)]+)\)")
PAGE = "docs/README.md"
logger = logging.getLogger(__name__)


def push(path: Path, repo: str, *, tag: bool = False, private: bool = True) -> str:
    """Check and unpack a zip of `tools.pack`, upload it by MONAI's `push_to_hf_hub`, and return its address.

    The page of the bundle becomes that of the repository, with its links into `docs`; `docs/README.md` is left out.

    Args:
        path: `<name>_v<version>.zip`.
        repo: user or organization, a slash, and the name of the repository.
        tag: also tag the upload with the version.
        private: whether others may not see it.

    Raises:
        InputError: `tools.verify.verify` refuses the file, or huggingface_hub is missing.
    """
    for note in verify(path):
        logger.warning("%s: %s", path.name, note)
    name, _, version = path.stem.rpartition("_v")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
        page = Path(folder, name, PAGE)
        page.write_text(_LINK.sub(r"](docs/\1)", page.read_text(encoding="utf-8")), encoding="utf-8")
        options = {"private": private, "version": version if tag else None, "ignore_patterns": [PAGE]}
        try:
            return str(push_to_hf_hub(repo=repo, name=name, bundle_dir=folder, **options))
        except OptionalImportError as error:
            raise InputError("huggingface_hub is missing: pip install huggingface_hub.") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 1 if the file was refused."""
    parser = argparse.ArgumentParser(prog="python -m tools.hub", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="<name>_v<version>.zip")
    parser.add_argument("repo", help="USER/NAME")
    parser.add_argument("--tag", action="store_true", help="tag the upload with the version")
    parser.add_argument("--public", action="store_true", help="let others see it (default: private)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        logger.info("%s", push(args.bundle, args.repo, tag=args.tag, private=not args.public))
    except InputError as error:
        logger.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
