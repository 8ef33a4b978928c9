"""One run at a time in a folder."""

from __future__ import annotations

import json
import logging
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

import filelock

from scripts.common.errors import InputError
from scripts.common.files import remove_leftovers, require_writable

LOCK_NAME = ".lock"
_HANDOVER_S = 0.5  # a run that ends at this moment is waited for
logger = logging.getLogger(__name__)


class FolderLock:
    """Keep other runs out of a folder, and remove the temporary files that killed runs left in it; a context manager.

    The file `.lock` is locked; that it exists means nothing. The system unlocks it when this process ends, however it
    ends, and processes that are forked meanwhile do not hold it. It names host, process and start time for the message,
    and is removed at the end. Only the process that writes the shared files should lock: rank 0 of a distributed run.

    A file system without locks, such as some network file systems, is warned of, and the run goes on without a lock;
    temporary files then stay.

    Args:
        folder: created if it is missing, and removed again if nothing was written to it.
        setting: the setting that names the folder, for the messages.

    Raises:
        InputError: on entry, if another run is using the folder or it cannot be written.

    >>> import tempfile
    >>> with FolderLock(tempfile.mkdtemp()) as lock:
    ...     lock.path.name
    '.lock'
    """

    def __init__(self, folder: str | os.PathLike[str], *, setting: str = "output_dir") -> None:
        self.folder, self.setting = Path(folder), setting
        self.path = self.folder / LOCK_NAME
        self._lock: filelock.BaseFileLock | None = None
        self._file: os.stat_result | None = None
        self._created = False

    def __enter__(self) -> FolderLock:
        self._created = not self.folder.exists()
        try:
            require_writable(self.folder, setting=self.setting)
            self._acquire()
        except BaseException:
            self._remove_if_created()
            raise
        if self._lock.is_locked:
            with suppress(OSError):  # of another user
                remove_leftovers(self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the folder may be gone, or the disk read-only
            if self._is_ours():
                self.path.unlink()
        with suppress(OSError):
            self._lock.release()
        self._file = None
        self._remove_if_created()

    def _acquire(self) -> None:
        """Lock the file, or warn that it cannot be locked."""
        self._lock = filelock.FileLock(
            self.path, timeout=_HANDOVER_S, mode=0o666, fallback_to_soft=False, on_acquired=self._sign
        )
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise InputError(
                f"{self.folder}: another run is using this folder{self._owner()}; wait until it ends, or set another "
                f"{self.setting}."
            ) from error
        except OSError as error:
            why = error.strerror or error
            logger.warning("%s: cannot be locked (%s); let no other run use this folder", self.folder, why)
            self._remove_empty()

    def _remove_if_created(self) -> None:
        if self._created:
            with suppress(OSError):  # holds results
                self.folder.rmdir()

    def check(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
            InputError: it was removed, replaced or unmounted.
        """
        if self._file is not None and not self._is_ours():
            raise InputError(f"{self.folder}: was removed or replaced during the run; run again.")

    def _remove_empty(self) -> None:
        """Remove the file if no run has signed it."""
        with suppress(OSError):
            if self.path.stat().st_size == 0:
                self.path.unlink()

    def _is_ours(self) -> bool:
        """Return whether the locked file still has its name."""
        try:
            return self._file is not None and os.path.samestat(self.path.stat(), self._file)
        except OSError:
            return False

    def _sign(self, descriptor: int) -> None:
        """Write into the locked file who holds it."""
        self._file = os.fstat(descriptor)
        started = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        owner = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "started": started})
        with suppress(OSError):  # a full disk: the lock holds without its text
            os.ftruncate(descriptor, 0)
            os.write(descriptor, owner.encode())

    def _owner(self) -> str:
        """Return what the file tells of the run that holds it, in brackets; "" if it tells nothing."""
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            return f" (host {owner['host']}, process {owner['process']}, since {owner['started']})"
        except (OSError, ValueError, TypeError, LookupError):
            return ""
