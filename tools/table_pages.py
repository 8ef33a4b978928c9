"""Write `docs/tables.md` of solf_filter: every column of its tables with unit, type and definition.

`python -m tools.table_pages [--check]`
"""

from __future__ import annotations

import sys

from scripts.solf.dictionary import FEATURE, columns_of, tables
from scripts.solf.thresholds import FEATURES
from tools.generated import ROOT, write_or_check

PAGE = ROOT / "bundles" / "solf_filter" / "docs" / "tables.md"
HEADER = f"""# Tables of solf_filter

CSV files are UTF-8 with a header; an empty cell is a value that does not exist. Parquet files hold unit and definition
of each column in its field's metadata (`pyarrow.parquet.read_schema`). x, y and z are the patient's axes as NIfTI
defines them, towards right, front and head. `{FEATURE}` stands for each feature that votes.
"""


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


if __name__ == "__main__":
    sys.exit(write_or_check({PAGE: table_page()}, __doc__))
