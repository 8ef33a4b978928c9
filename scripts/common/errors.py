"""Errors in the user's input, and how they are shown at a terminal."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from pydoc import ErrorDuringImport
from types import TracebackType

# A worker of a DataLoader sends the traceback of its error as text, without the chain.
_WORKER_ERROR = re.compile(r"^scripts\.common\.errors\.InputError: (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)


class InputError(ValueError):
    """An error in what the user gave: a file, a setting or a folder.

    The message names the value and the fix, so it is shown without a traceback. Any other error is a bug or a failure
    of the machine and is shown with its traceback.
    """


def root_cause(error: BaseException) -> BaseException:
    """Follow a chain of `raise ... from` to the first `InputError`, or else to its beginning."""
    while not isinstance(error, InputError) and (wrapped := _wrapped_error(error)) is not None:
        error = wrapped
    in_worker = _WORKER_ERROR.search(str(error)) if "DataLoader worker process" in str(error) else None
    return InputError(in_worker[1].strip()) if in_worker else error


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
    torch = sys.modules.get("torch")  # not imported here: that takes a second in every worker process
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        text += " (lower sw_batch_size or patch_size, or set sw_device to cpu)"
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
    if sys.flags.dev_mode or not isinstance(cause, InputError):
        sys.__excepthook__(kind, error, trace)
    if not isinstance(error, KeyboardInterrupt):
        sys.stderr.write(f"\nerror: {cause if isinstance(cause, InputError) else reason(cause)}\n")


def is_bundle_run() -> bool:
    """Return whether this process is `python -m monai.bundle`."""
    return Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")


def raise_all(problems: Sequence[str], where: object, fix: str) -> None:
    """Raise one error that lists all problems, one per line; do nothing if there are none.

    Args:
        problems: what is wrong, the path first.
        where: the file, folder or step that was checked.
        fix: what to do about it.

    Raises:
        InputError: `problems` is not empty.
    """
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError("\n".join([f"{where}: {count}; {fix}", *problems]))
