"""Whether a config runs without Python of its bundle, for programs that admit MONAI's and torch's alone.

It says nothing about safety: those libraries can run anything as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

PATTERN = "configs/*_portable.json"
_TARGET = re.compile(r"[A-Za-z]\w*|(?:monai|torch)(?:\.\w+)+")  # a MONAI component, or a dotted name
_IMPORT = re.compile(r"\$import (?:monai|torch|glob)(?:\.\w+)*")
_REFERENCE = re.compile(r"[@%][\w#.]+")
_NAMES = {"monai", "torch", "glob", "sorted", "list", "len", "str", "int", "float"}


def portable_problems(config: Any, where: str = "") -> Iterator[str]:
    """Yield what a portable config must not hold: components and names other than MONAI's, torch's and `glob`.

    Args:
        config: content of the file, or a part of it.
        where: key of the part.
    """
    if isinstance(config, dict):
        target = config.get("_target_", "Compose")
        if not isinstance(target, str) or not _TARGET.fullmatch(target):
            yield f"{where}: component {target!r:.100}"
        for key, value in config.items():
            yield from portable_problems(value, f"{where}#{key}" if where else str(key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from portable_problems(value, f"{where}#{index}")
    elif isinstance(config, str) and config.startswith("$") and (names := _foreign_names(config)):
        yield f"{where}: {', '.join(sorted(names))} in {config!r:.100}"


def _foreign_names(expression: str) -> set[str]:
    """Return the names in an expression that are not allowed; private attributes are not either."""
    if _IMPORT.fullmatch(expression):
        return set()
    try:
        nodes = list(ast.walk(ast.parse(_REFERENCE.sub("len", expression[1:]), mode="eval")))
    except SyntaxError:
        return {"a syntax error"}
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - own - _NAMES
    return used | {node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
