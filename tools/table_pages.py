"""Write `docs/tables.md` of solf_filter: every column of its tables with unit, type and definition.

`python -m tools.table_pages [--check]`
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from scripts.common.files import write_text
from scripts.solf.dictionary import FEATURE, columns_of, tables
from scripts.solf.thresholds import FEATURES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "bundles" / "solf_filter" / "docs" / "tables.md"
HEADER = f"""# Tables of solf_filter

CSV files are UTF-8 with a header; an empty cell is a value that does not exist. Parquet files hold unit and definition
of each column in its field's metadata (`pyarrow.parquet.read_schema`). x, y and z are the patient's axes as NIfTI
defines them, towards right, front and head. `{FEATURE}` stands for each feature that votes.
"""
logger = logging.getLogger(__name__)


def table_page() -> str:
    """Return the page, a section per table."""
    return "\n".join([HEADER, *map(_section, tables())])


def _section(table: str) -> str:
    declared = tables()[table]
    head = f"## {', '.join(f'`{file}`' for file in declared['files'])}, by {declared['written_by']}"
    columns = columns_of(table)
    rows = [(f"`{name}`", *columns[name.replace(FEATURE, FEATURES[0])]) for name in declared["columns"]]
    lines = [("column", "unit", "type", "definition"), ("---",) * 4, *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{head}\n\nA row is {declared['row']}.\n\n{body}\n"


def main() -> int:
    """Write the page, or with --check say whether it would change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if the page would change")
    check = parser.parse_args().check
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = table_page()
    changed = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text
    if changed:
        logger.info("%s: %s", PAGE.relative_to(ROOT), "would change" if check else "written")
        if not check:
            write_text(PAGE, text)
    return int(check and changed)


if __name__ == "__main__":
    sys.exit(main())
