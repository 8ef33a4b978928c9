"""Tables of a prepared cohort: by subject, by station, and as counts that may leave a secure environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.common.files import require_writable, write_table, write_text
from scripts.common.small_counts import check_folder, shown
from scripts.ukbb.stations import BREATH_HOLDS

Facts = Mapping[str, Any]

SUBJECTS, STATIONS, AGGREGATE = "subjects.csv", "stations.csv", "aggregate/aggregate.csv"
_COLUMNS = ("case", "eid", "instance", "array", "shape", "stations", "missing", "gaps", "swapped", "repeated")
_COLUMNS += ("unequal", "notes")


def subject_row(facts: Facts) -> dict[str, Any]:
    """Return the row of a subject; several numbers in a cell have spaces between them."""
    eid, instance, array = facts["case"].split("_")
    stations = facts["stations"]
    cells = (
        facts["case"],
        eid,
        instance,
        array,
        "x".join(map(str, facts["shape"])),
        len(stations),
        _listed(facts["missing_stations"]),
        " ".join(f"{gap['first_slice']}-{gap['last_slice']}" for gap in facts["gaps"]),
        _listed(facts["swapped_stations"]),
        _listed(row["station"] for row in stations if row["repeats"]),
        _listed(row["station"] for row in stations if row["unequal"]),
        "; ".join(facts["notes"]),
    )
    return dict(zip(_COLUMNS, cells, strict=True))


def write_tables(out_dir: Path, cohort: Sequence[Facts]) -> None:
    """Write `subjects.csv` and `stations.csv`."""
    write_table(pd.DataFrame([subject_row(facts) for facts in cohort], columns=_COLUMNS), out_dir / SUBJECTS)
    rows = [{"case": facts["case"], **row} for facts in cohort for row in facts["stations"]]
    texts = [{key: _listed(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows]
    write_table(pd.DataFrame(texts), out_dir / STATIONS)


def write_counts(out_dir: Path, cohort: Sequence[Facts], *, failed: int) -> None:
    """Write `aggregate/aggregate.csv`: how many archives show what, without names; counts below 5 are not shown.

    Args:
        out_dir: folder of the results.
        cohort: facts of the archives that were prepared.
        failed: number of the others.

    Raises:
        InputError: `aggregate` holds other files: it is made to be copied as a whole.
    """
    path = out_dir / AGGREGATE
    check_folder(require_writable(path.parent), [path.name])
    rows = [subject_row(facts) for facts in cohort]
    total = len(rows)
    known = shown(total, total + failed) == str(total)
    counts = {f"station {n} missing": _holding("missing", n, rows) for n in range(1, len(BREATH_HOLDS) + 1)}
    counts |= {f"station {n} exchanged": _holding("swapped", n, rows) for n in range(1, len(BREATH_HOLDS) + 1)}
    for name in ("missing", "swapped", "repeated", "unequal", "notes"):
        counts[f"any {name}"] = sum(bool(row[name]) for row in rows)
    lines = ["finding,archives", f"all,{shown(total + failed)}", f"prepared,{shown(total, total + failed)}"]
    lines += [f"{name},{shown(count, total, whole_shown=known)}" for name, count in counts.items()]
    write_text(path, "\n".join(lines) + "\n")


def _holding(column: str, number: int, rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(str(number) in row[column].split() for row in rows)


def _listed(values: Any) -> str:
    return " ".join(map(str, values))
