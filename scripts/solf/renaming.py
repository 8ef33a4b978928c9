"""How the labels of files become those of a label table, by name: what has no counterpart is ignored, and listed."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from scripts.common.errors import InputError
from scripts.common.files import atomic_path
from scripts.common.label_maps import MAX_CLASS_ID
from scripts.common.names import printable
from scripts.common.organs import IDS_OF_NAMES
from scripts.solf.tables import IGNORE, read_label_table

COLUMNS = ("id", "name", "files", "voxels", "becomes", "organ", "reason")
OVERLAP = "overlap"
logger = logging.getLogger(__name__)


class Renaming:
    """The label table, and how other ids and names become its ids.

    Args:
        label_table: JSON file of label id to name; "" for the 72 organs of `scripts.common.organs`, which are also
            known by TotalSegmentator's names.
        label_names: JSON file of the files' own ids and names; "" if they are those of `label_table`.
        ignore_id: value of ignored voxels.

    Attributes:
        organs: label id to name.
        names: the files' own ids and names; empty if they are those of `organs`.
        values: (65536,) uint16, the new id of each own id; None if there are no own ones.

    Raises:
        InputError: a table is refused, or has no name in common with the other.
    """

    def __init__(self, *, label_table: str | Path = "", label_names: str | Path = "", ignore_id: int = IGNORE) -> None:
        self.organs, self.ignore_id = read_label_table(label_table, ignore_id=ignore_id), ignore_id
        known = {name: label for label, name in self.organs.items()} if label_table else IDS_OF_NAMES
        self._ids = {_words(name): label for name, label in known.items()}
        self.names = read_label_table(label_names) if label_names else {}
        self.values = None
        if self.names:
            self._check_names(label_names)
            self.values = np.full(MAX_CLASS_ID + 1, ignore_id, dtype=np.uint16)
            self.values[[0, *self.names]] = [0, *map(self.id_of, self.names.values())]

    def id_of(self, name: str) -> int:
        """Return the label id of a name, of which case and the order of words do not count; `ignore_id` if unknown."""
        return self._ids.get(_words(name), self.ignore_id)

    def ids_of(self, names: Iterable[str], path: object) -> dict[str, int]:
        """Return the label id of each name that has one; `path` is named if none has one.

        Raises:
            InputError: none has one.
        """
        ids = {name: self.id_of(name) for name in names}
        known = {name: label for name, label in ids.items() if label != self.ignore_id}
        if not known:
            raise InputError(
                f"{printable(path)}: none of its {len(ids)} names, such as {next(iter(ids), '')!r}, is one of the "
                "label table's; correct them, or set label_table."
            )
        return known

    def _check_names(self, path: str | Path) -> None:
        """Refuse names that are none of the label table's, and log what is ignored or merged."""
        known, path = self.ids_of(self.names.values(), path), printable(path)
        if others := [name for name in self.names.values() if name not in known]:
            total, listed = len(self.names), ", ".join(others)
            logger.warning("%s: %d of %d become ignored (%d): %s", path, len(others), total, self.ignore_id, listed)
        for label, count in Counter(known.values()).items():
            if count > 1:
                merged = ", ".join(name for name, other in known.items() if other == label)
                logger.warning("%s: %d become one label, %s: %s", path, count, self.organs[label], merged)


class Sources:
    """What the files of a cohort held and what became of it.

    Args:
        renaming: of the transform that read them.
    """

    def __init__(self, renaming: Renaming) -> None:
        self.renaming = renaming
        self.files: Counter[str] = Counter()
        self.voxels: Counter[str] = Counter()

    def add(self, sources: str) -> None:
        """Add what `source_counts` wrote of a file."""
        counts = json.loads(sources) if sources else {}
        self.files.update(counts.keys())
        self.voxels.update(counts)

    def rows(self) -> Iterator[tuple[object, ...]]:
        """Yield the rows of the table, with the columns `COLUMNS`."""
        own, renaming = self.renaming.names, self.renaming
        found = {str(label) for label in own} | (self.files.keys() - {OVERLAP})
        listed = []
        for key in sorted(found, key=lambda key: (not key.isdecimal(), int(key) if key.isdecimal() else 0, key)):
            label = int(key) if key.isdecimal() else ""
            name = own.get(label, "") if key.isdecimal() else key.removeprefix("=")
            becomes = renaming.id_of(name) if name else renaming.ignore_id
            listed.append((label, name, self.files[key], self.voxels[key], becomes))
        merged = Counter(becomes for *_, becomes in listed)
        for row in listed:
            organ = renaming.organs.get(row[-1], "")
            yield (*row, organ, self._reason(row[0], row[1], organ, merged[row[-1]]))

    def _reason(self, label: object, name: str, organ: str, merged: int) -> str:
        if organ:
            return f"one of {merged} that become this organ" if merged > 1 else ""
        if name:
            return "the label table has no such name"
        return "ignore_id of the file" if label == self.renaming.ignore_id else "label_names has no such id"

    def write(self, folder: Path) -> None:
        """Write `label_names.csv` if labels were renamed, ignored or merged, and log how many voxels are ignored."""
        rows, path = list(self.rows()), folder / "label_names.csv"
        if not rows:
            path.unlink(missing_ok=True)  # of an earlier run
            return
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        ignored = [row for row in rows if not row[-2]]
        if voxels := sum(row[3] for row in ignored):
            kinds = sum(row[3] > 0 for row in ignored)
            logger.warning(
                "%d voxels of %d labels are ignored (%d): they are not measured and stay ignored; see %s",
                *(voxels, kinds, self.renaming.ignore_id, printable(path)),
            )
        if self.files[OVERLAP]:
            logger.warning(
                "%d voxels in %d cases lie in several organs; the highest id is kept",
                *(self.voxels[OVERLAP], self.files[OVERLAP]),
            )


def source_counts(labels: dict[int, int], names: dict[str, int], *, overlap: int = 0) -> str:
    """Return as JSON how many voxels of a file have an own id or name, and lie in several organs; "" for none."""
    counts = {str(label): count for label, count in labels.items()} | {f"={name}": n for name, n in names.items()}
    counts |= {OVERLAP: overlap} if overlap else {}
    return json.dumps(counts) if counts else ""


def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"[a-z0-9]+", name.lower())))
