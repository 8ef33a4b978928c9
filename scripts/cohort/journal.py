"""The finished cases of a run, kept on disk so that the next run goes on where a killed one stopped."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from scripts.files import require_writable

Case = Mapping[str, str]

COMMIT_SECONDS = 1.0
_APPLICATION_ID = int.from_bytes(b"SOLF", "big")
_VERSION = 1
_SCHEMA = (  # the index answers "which are finished?" without a look at the payloads
    "CREATE TABLE cases (name TEXT PRIMARY KEY, stamp TEXT NOT NULL, crc INTEGER NOT NULL, payload BLOB NOT NULL)",
    "CREATE INDEX stamps ON cases (name, stamp)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)


class Journal:
    """A SQLite file of finished cases and what was computed of them; a context manager.

    A case is finished once its row is committed, at most about a second after `put`: a process killed at any moment,
    and a power cut, lose no more than that. It counts for the same file and settings alone. A file is looked at once,
    when its case is first asked for; one that changes while it is read is therefore done again by the next run.

    The file is locked while it is open. A rollback journal and not a write-ahead log keeps it whole, because that
    needs no memory shared between processes, which network file systems lack.

    Args:
        path: of the file; made where missing, with its folder.
        settings: all that the results depend on besides the files, as text; other settings start afresh.
        key: key of a case's file or folder. Of a folder, names that come or go are noticed.

    Raises:
        ValueError: the file is damaged, of another program, in use by another run, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, settings: str, key: str = "image") -> None:
        self.path = Path(path)
        self.settings = settings
        self.key = key
        self._stamps: dict[str, str] = {}
        require_writable(self.path.parent)
        with _explained(self.path):
            self._connection = sqlite3.connect(self.path, timeout=0)
        try:
            with _explained(self.path):
                self._open()
        except BaseException:
            self._connection.close()
            raise
        self._committed = time.monotonic()

    def _open(self) -> None:
        """Take the lock for as long as the file is open, and make the table in an empty file."""
        database = self._connection
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA synchronous = FULL")
        with database:
            database.execute("BEGIN EXCLUSIVE")
            tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            for statement in () if tables else _SCHEMA:
                database.execute(statement)
        found = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if found != [_APPLICATION_ID, _VERSION]:
            raise ValueError(
                f"{self.path}: is no journal of this version; move the file away, or set another output folder."
            )

    def finished(self, cases: Iterable[Case]) -> set[str]:
        """Return the names of those cases that need not be done again."""
        with _explained(self.path):
            stored = dict(self._connection.execute("SELECT name, stamp FROM cases"))
        return {case["case"] for case in cases if stored.get(case["case"]) == self._stamp(case)}

    def put(self, case: Case, payload: bytes) -> None:
        """Keep what was computed of a case in place of what is there; call `commit_due` while waiting for the next."""
        row = (case["case"], self._stamp(case), zlib.crc32(payload), payload)
        with _explained(self.path):
            self._connection.execute("REPLACE INTO cases VALUES (?, ?, ?, ?)", row)
        self.commit_due()

    def commit_due(self) -> None:
        """Commit if the last commit was a second ago."""
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Wait until all cases put so far are on disk."""
        with _explained(self.path):
            self._connection.commit()
        self._committed = time.monotonic()

    def payloads(self, cases: Iterable[Case]) -> Iterator[tuple[str, bytes]]:
        """Yield name and payload of each finished case, in the given order, one at a time.

        Raises:
            ValueError: a payload is not what was put.
        """
        query = "SELECT crc, payload FROM cases WHERE name = ? AND stamp = ?"
        for case in cases:
            with _explained(self.path):
                row = self._connection.execute(query, (case["case"], self._stamp(case))).fetchone()
            if row is None:
                continue
            if zlib.crc32(row[1]) != row[0]:
                raise ValueError(_damaged(self.path, f'the case "{case["case"]}" has another checksum'))
            yield case["case"], row[1]

    def _stamp(self, case: Case) -> str:
        """Return a digest of the case's file and the settings; the same one for as long as the journal is open."""
        if case["case"] not in self._stamps:
            self._stamps[case["case"]] = _digest(case[self.key], self.settings)
        return self._stamps[case["case"]]

    def close(self) -> None:
        """Commit, and let go of the file."""
        try:
            self.commit()
        finally:
            self._connection.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _digest(path: str, settings: str) -> str:
    try:
        status = Path(path).stat()
        seen: list[int] = [status.st_size, status.st_mtime_ns]
    except OSError:  # the case will fail with a reason of its own
        seen = []
    return hashlib.sha256(json.dumps([str(path), seen, settings]).encode()).hexdigest()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into what a user can do about them."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname.startswith("SQLITE_BUSY"):
            raise ValueError(
                f"{path}: another run works in this folder; wait for its end, or set another output folder."
            ) from error
        raise ValueError(f"{path}: cannot be written ({error}); free some space or set another folder.") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(_damaged(path, str(error))) from error


def _damaged(path: Path, why: str) -> str:
    return f"{path}: the journal of finished cases is damaged ({why}); delete it, and all cases are done again."
