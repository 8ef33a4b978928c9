"""Format the bundles' JSON: four spaces, lists of plain values on one line where they fit."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from scripts.common.files import write_text

WIDTH = 100
INDENT = " " * 4
ROOT = Path(__file__).resolve().parents[1]
logger = logging.getLogger(__name__)


def format_json(value: Any, indent: str = "") -> str:
    """Write a JSON value as the configs of this repository are written.

    Args:
        value: what `json.load` returned.
        indent: white space before the value's own lines.
    """
    one_line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value:
        return one_line
    inner = indent + INDENT
    if isinstance(value, list):
        if is_flat(value) and len(inner) + len(one_line) <= WIDTH:
            return one_line
        rows = [format_json(item, inner) for item in value]
        return "[\n" + ",\n".join(inner + row for row in rows) + f"\n{indent}]"
    rows = [f"{json.dumps(key)}: {format_json(item, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(inner + row for row in rows) + f"\n{indent}}}"


def is_flat(value: list[Any]) -> bool:
    """Return whether a list holds short plain values, or lists of such, but no expression worth its own line."""
    for item in value:
        if isinstance(item, dict) or (isinstance(item, str) and item.startswith("$")):
            return False
        if isinstance(item, list) and not is_flat(item):
            return False
    return True


def main() -> int:
    """Format every config, or with --check list those that would change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if a file would change")
    check = parser.parse_args().check
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    changed = 0
    for path in sorted(ROOT.glob("bundles/*/configs/*.json")):
        text = path.read_text(encoding="utf-8")
        formatted = format_json(json.loads(text)) + "\n"
        if formatted == text:
            continue
        changed += 1
        logger.info("%s: %s", path.relative_to(ROOT), "would be reformatted" if check else "reformatted")
        if not check:
            write_text(path, formatted)
    return int(check and changed > 0)


if __name__ == "__main__":
    sys.exit(main())
