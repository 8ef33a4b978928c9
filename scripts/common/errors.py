"""Errors in the user's input, and how they are shown at a terminal."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from pydoc import ErrorDuringImport
from types import TracebackType

# A worker of a DataLoader sends the traceback of its error as text, without the chain.
_WORKER_ERROR = re.compile(r"^scripts\.common\.errors\.InputError: (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)


_LISTED_PROBLEMS = 1000
STOPPED = "what was finished is kept; a training continues with resume true"

_FIX_OF_ERRNO = {
    errno.ENOSPC: "free disk space, then run again",
    errno.EDQUOT: "free disk space, then run again",
    errno.EROFS: "set another folder",
    errno.EACCES: "set another folder, or change its permissions",
    errno.ENAMETOOLONG: "shorten the name",
}
_FIX_OF_MESSAGE = (
    (r"file write failed|failed writing", "free disk space, then run again"),
    (
        r"DataLoader worker .*(is killed by signal|exited unexpectedly)",
        "systems kill processes when memory runs out: lower num_workers, batch_size or cache_rate",
    ),
    (r"shared memory|/dev/shm|Bus error", "shared memory is too small for loading in processes: set num_workers to 0"),
    (r"OutOfMemoryError", "lower sw_batch_size, batch_size or patch_size, or set sw_device to cpu"),
    (r"DefaultCPUAllocator|^(_Array)?MemoryError", "lower sw_batch_size, batch_size, num_workers or patch_size"),
)


class InputError(ValueError):
    """An error in what the user gave: a file, a setting or a folder.

    The message names the value and the fix, so it is shown without a traceback. Any other error is a bug or a failure
    of the machine and is shown with its traceback.
    """


def root_cause(error: BaseException) -> BaseException:
    """Follow a chain of `raise ... from` to the first `InputError`, or else to its beginning.

    A failure of the machine that the user can do something about, such as a full disk, becomes an `InputError` too.
    """
    while not isinstance(error, InputError):
        if fix := _machine_fix(error):
            return InputError(f"{' '.join(str(error).split())[:300]} ({fix})".lstrip())
        if (wrapped := _wrapped_error(error)) is None:
            break
        error = wrapped
    in_worker = _WORKER_ERROR.search(str(error)) if "DataLoader worker process" in str(error) else None
    return InputError(in_worker[1].strip()) if in_worker else error


def _machine_fix(error: BaseException) -> str:
    """Return what to do about a failure of the machine; "" for any other error."""
    if isinstance(error, OSError) and error.errno in _FIX_OF_ERRNO:
        return _FIX_OF_ERRNO[error.errno]
    text = f"{type(error).__name__}: {error}"
    return next((fix for pattern, fix in _FIX_OF_MESSAGE if re.search(pattern, text)), "")


def _wrapped_error(error: BaseException) -> BaseException | None:
    """Return the error that another one was raised for.

    MONAI imports components with `pydoc.locate`, which does not chain an error of the import but stores it.
    """
    return error.value if isinstance(error, ErrorDuringImport) else error.__cause__


def reason(error: BaseException) -> str:
    """Describe on one line why an error was raised.

    Args:
        error: may be wrapped in others by `raise ... from`, as MONAI does.

    Returns:
        The message of an `InputError`; "TypeName: message" of any other error.
    """
    error = root_cause(error)
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def bug_traceback(error: BaseException) -> str:
    """Return the traceback of an error as text; "" if the input was wrong."""
    cause = root_cause(error)
    return "" if isinstance(cause, InputError) else "".join(traceback.format_exception(cause))


def log_failure(logger: logging.Logger, case: str, error: BaseException) -> None:
    """Log that a case failed, with the traceback unless the input was wrong."""
    error = root_cause(error)
    logger.error("case %s failed: %s", case, reason(error), exc_info=None if isinstance(error, InputError) else error)


def print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error, as `sys.excepthook`: an `InputError` as its message, any other error with its traceback.

    MONAI 1.6.1 wraps an error of a component in `Failed to instantiate component` below a long traceback.
    `python -X dev -m monai.bundle ...` prints the traceback of an `InputError` too.
    """
    cause = root_cause(error)
    if isinstance(cause, SystemExit):  # SIGTERM while a component was imported
        raise cause
    if isinstance(cause, KeyboardInterrupt):
        sys.stderr.write(f"\nstopped by Ctrl-C: {STOPPED}\n")
        if cause is not error:
            raise SystemExit(130)
        return
    if sys.flags.dev_mode or not isinstance(cause, InputError):
        sys.__excepthook__(kind, error, trace)
    sys.stderr.write(f"\nerror: {cause if isinstance(cause, InputError) else reason(cause)}\n")


def is_bundle_run() -> bool:
    """Return whether this process is `python -m monai.bundle`, and not one that it started."""
    is_bundle = Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")
    return is_bundle and multiprocessing.parent_process() is None


def raise_all(problems: Sequence[str], where: object, fix: str) -> None:
    """Raise one error that lists the problems, one per line, at most `_LISTED_PROBLEMS`; do nothing if there are none.

    Args:
        problems: what is wrong, the path first.
        where: the file, folder or step that was checked.
        fix: what to do about it.

    Raises:
        InputError: `problems` is not empty.
    """
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        more = [f"... and {len(problems) - _LISTED_PROBLEMS} more"] if len(problems) > _LISTED_PROBLEMS else []
        raise InputError("\n".join([f"{where}: {count}; {fix}", *problems[:_LISTED_PROBLEMS], *more]))
