"""The finished cases of a run, kept on disk so that a killed run can be resumed."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from scripts.common.errors import InputError
from scripts.common.files import require_writable
from scripts.common.fingerprint import file_state

Case = Mapping[str, str]

COMMIT_SECONDS = 1.0
_APPLICATION_ID = int.from_bytes(b"JRNL", "big")
_VERSION = 1
_SCHEMA = (  # the index lists the finished cases without reading payloads
    "CREATE TABLE cases (name TEXT PRIMARY KEY, stamp TEXT NOT NULL, crc INTEGER NOT NULL, payload BLOB NOT NULL)",
    "CREATE INDEX stamps ON cases (name, stamp)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)


class Journal:
    """A SQLite file of finished cases and their results; a context manager.

    A case is finished once its row is committed, at most about a second after `put`; a killed process or a power cut
    loses no more than that.

    A result is valid only for the same settings, the same file (path, size and time of change to the nanosecond) and
    the same other entries of the case, of which empty ones do not count.
    Times are compared for equality only, so a clock that goes backwards and files from the future do no harm. A file
    that is copied anew is processed again even if its content is the same. A file whose content changes while size and
    time stay, as `touch -r` can do, is not detected: delete the journal. The state of a file is read once, when its
    case is first asked for; see `is_changed`.

    Other runs must be kept out by `scripts.common.locks`. Against other programs the SQLite file is locked too while it
    is open, unless its file system has no locks. It uses a rollback journal: a write-ahead log needs memory that
    processes share, which network file systems lack.

    Args:
        path: the SQLite file; created if missing, with its folder.
        settings: everything that the results depend on besides the files, as text; other settings start afresh.

    Raises:
        InputError: the file is damaged, of another program, open in another program, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, settings: str) -> None:
        self.path = Path(path)
        self.settings = settings
        self._stamps: dict[str, str] = {}
        require_writable(self.path.parent)
        with _explained(self.path):
            lock = "" if _has_locks(self.path.parent) else "?nolock=1"
            self._connection = sqlite3.connect(f"{self.path.absolute().as_uri()}{lock}", timeout=0, uri=True)
        try:
            with _explained(self.path):
                self._open()
        except BaseException:
            self._connection.close()
            raise
        self._committed = time.monotonic()

    def _open(self) -> None:
        """Lock the file for as long as it is open, and create the table in an empty file."""
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
            raise InputError(
                f"{self.path}: is not a journal of this version; move the file away, or set another output folder."
            )

    def finished(self, cases: Iterable[Case]) -> set[str]:
        """Return the names of the cases that are finished."""
        with _explained(self.path):
            stored = dict(self._connection.execute("SELECT name, stamp FROM cases"))
        return {case["case"] for case in cases if stored.get(case["case"]) == self._stamp(case)}

    def earlier(self) -> dict[str, tuple[str, str]]:
        """Return path and settings of every case that a run here finished, by name."""
        with _explained(self.path):
            stored = dict(self._connection.execute("SELECT name, stamp FROM cases"))
        stamps = {name: json.loads(stamp) for name, stamp in stored.items()}
        return {name: (stamp[0], stamp[-1]) for name, stamp in stamps.items()}

    def forget(self, names: Iterable[str]) -> None:
        """Remove cases, so that they are processed again if they come back."""
        with _explained(self.path):
            self._connection.executemany("DELETE FROM cases WHERE name = ?", [(name,) for name in names])
        self.commit()

    def is_changed(self, case: Case) -> bool:
        """Return whether the file of a case changed since its state was read."""
        return self._stamp(case) != self._new_stamp(case)

    def put(self, case: Case, payload: bytes) -> None:
        """Store the result of a case, in place of an older one; call `commit_due` while waiting for the next."""
        row = (case["case"], self._stamp(case), zlib.crc32(payload), payload)
        with _explained(self.path):
            self._connection.execute("REPLACE INTO cases VALUES (?, ?, ?, ?)", row)
        self.commit_due()

    def commit_due(self) -> None:
        """Commit if the last commit was at least a second ago."""
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Wait until all cases stored so far are on disk."""
        with _explained(self.path):
            self._connection.commit()
        self._committed = time.monotonic()

    def payloads(self, cases: Iterable[Case]) -> Iterator[tuple[str, bytes]]:
        """Yield name and payload of each finished case, in the given order, one at a time.

        Raises:
            InputError: a payload is damaged.
        """
        query = "SELECT crc, payload FROM cases WHERE name = ? AND stamp = ?"
        for case in cases:
            with _explained(self.path):
                row = self._connection.execute(query, (case["case"], self._stamp(case))).fetchone()
            if row is None:
                continue
            if zlib.crc32(row[1]) != row[0]:
                raise InputError(_damaged(self.path, f'checksum error in case "{case["case"]}"'))
            yield case["case"], row[1]

    def _stamp(self, case: Case) -> str:
        """Return the state of the case's file, its entries and the settings, read once while the journal is open."""
        if case["case"] not in self._stamps:
            self._stamps[case["case"]] = self._new_stamp(case)
        return self._stamps[case["case"]]

    def _new_stamp(self, case: Case) -> str:
        own = {key: value for key, value in case.items() if key not in ("case", "image") and value}
        return json.dumps([*file_state(case["image"]), *([own] if own else []), self.settings], sort_keys=True)

    def close(self) -> None:
        """Commit, and close the file."""
        try:
            self.commit()
        finally:
            self._connection.close()
        # SQLite leaves the emptied rollback journal of a killed run if this run wrote nothing
        self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _has_locks(folder: Path) -> bool:
    """Return whether SQLite can lock files in a folder: some network file systems have no locks."""
    with tempfile.TemporaryFile(dir=folder) as file:  # no other program can have locked it
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into messages with a fix."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname.startswith("SQLITE_BUSY"):
            raise InputError(
                f"{path}: is open in another program; close it there, or set another output folder."
            ) from error
        raise InputError(f"{path}: cannot be written ({error}); free some space or set another folder.") from error
    except sqlite3.DatabaseError as error:
        raise InputError(_damaged(path, str(error))) from error


def _damaged(path: Path, why: str) -> str:
    return f"{path}: the journal of finished cases is damaged ({why}); delete it to process all cases again."
