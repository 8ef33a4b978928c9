"""Write `docs/settings.md` of each bundle: every setting with its default, its values and its meaning.

`python -m tools.settings_pages [--check]`
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.common.settings import declarations, describe
from tools.generated import ROOT, write_or_check

WORKFLOWS = {
    "train.json": "Training",
    "inference.json": "Inference",
    "inference_portable.json": "Inference without scripts",
}
HEADER = """# Settings of {bundle}

`python -m monai.bundle run --config_file ...` takes each setting as `--name value`, such as `--output_dir results` or
`--{example}`. All are checked before anything is read, and an unknown name is refused
with the nearest known one. Paths are relative to the working folder. Any other value of the configs is set by its path,
as in `--network_def#feature_size 24`; booleans there are `True` or `False`.
"""


def settings_page(bundle: Path) -> str:
    """Return the page of a bundle: one table per config; those of overlays list what they add or change."""
    configs = sorted(bundle.glob("configs/*.json"), key=lambda path: (path.name not in WORKFLOWS, path.name))
    parts, known = [HEADER.format(bundle=bundle.name, example=_example(bundle))], {}
    for config in configs:
        if config.name != "metadata.json":
            rows = list(_rows(config, known))
            title = WORKFLOWS.get(config.name, "With")
            parts.append(_table(f"{title} (`{config.name}`)" if title != "With" else f"With `{config.name}`", rows))
    return "\n".join(part for part in parts if part)


def _example(bundle: Path) -> str:
    examples = {
        "solf_filter": "workers 4",
        "universeg": "support_size 16",
        "ultrabones": "white 65535",
        "segvol": "zoom_in false",
    }
    return examples.get(bundle.name, "spacing_mm '[1.5, 1.5, 2.0]'")


def _rows(config: Path, known: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a config; of an overlay, those whose default `known` lacks or has otherwise."""
    raw = json.loads(config.read_text(encoding="utf-8"))
    own = {name for name in declarations() if name in raw and not isinstance(raw[name], dict)}
    parser = ConfigParser()
    parser.read_config([str(path) for path in _with_base(config, own, raw)])
    if config.name in WORKFLOWS:
        known.clear()
        own |= {name for name in declarations() if "#" in name and name in parser}
    for name in [*(key for key in raw if key in own), *(name for name in declarations() if name in own - set(raw))]:
        declared = declarations()[name]
        varies = parser[name] is None or re.search(r"#?max_epochs|@local_rank|@speed|is_available", str(parser[name]))
        default = declared["default"] if varies else _shown(parser.get_parsed_content(name))
        if known.get(name) != default:
            known[name] = default
            limit = f", at most `{declared['notAbove']}`" if "notAbove" in declared else ""
            yield f"`{name}`", default, describe(declared) + limit, declared["description"]


def _with_base(config: Path, own: set[str], raw: dict[str, Any]) -> list[Path]:
    """Return the configs to read: an overlay refers to settings of the config that it is used with."""
    if config.name in WORKFLOWS:
        return [config]
    parts = " ".join(raw)
    names = ["inference.json"]
    if re.search("validate|train|loss|datalist", parts) or "rule" in own:
        names = ["train.json", "evaluate.json"] if "+validate" in parts else ["train.json"]
    return [*map(config.with_name, names), config]


def _shown(value: Any) -> str:
    """Show a default as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if value in ("", None):
        return "none"
    return str(value).removeprefix("./").replace("'", "")


def _table(title: str, rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [("setting", "default", "values", "meaning"), ("---",) * 4, *rows]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


if __name__ == "__main__":
    bundles = sorted(path.parent for path in ROOT.glob("bundles/*/configs"))
    sys.exit(write_or_check({bundle / "docs" / "settings.md": settings_page(bundle) for bundle in bundles}, __doc__))
