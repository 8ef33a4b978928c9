"""Format the bundles' JSON: four spaces, lists of plain values on one line where they fit."""

from __future__ import annotations

import json
import sys
from typing import Any

from tools.generated import ROOT, write_or_check

WIDTH = 100
INDENT = " " * 4


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


if __name__ == "__main__":
    configs = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("bundles/*/configs/*.json"))}
    sys.exit(write_or_check({path: format_json(json.loads(text)) + "\n" for path, text in configs.items()}, __doc__))
