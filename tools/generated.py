"""Files of the repository that a tool writes: `make format` writes them, `make lint` checks them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from scripts.common.files import write_text

ROOT = Path(__file__).resolve().parents[1]
logger = logging.getLogger(__name__)


def write_or_check(files: Mapping[Path, str], doc: str) -> int:
    """Write the files whose text differs, or with `--check` on the command line only name them.

    Args:
        files: path in the repository to text.
        doc: describes the command.

    Returns:
        The exit status: 1 if a checked file would change.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if a file would change")
    check = parser.parse_args().check
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    changed = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        logger.info("%s: %s", path.relative_to(ROOT), "would change" if check else "written")
        if not check:
            write_text(path, files[path])
    return int(check and bool(changed))
