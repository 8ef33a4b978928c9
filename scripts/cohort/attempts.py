"""One case in a worker: its result or the reason of its failure, and a separate process for a case that crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

import cloudpickle

from scripts.common.errors import bug_traceback, reason

CaseFunction = Callable[[Mapping[str, str]], bytes]
_SIZE_BYTES = 8


class CaseResult(NamedTuple):
    """The result of a case: a payload, or the reason why there is none.

    Attributes:
        payload: what the function returned; empty if it failed.
        failure: reason; "" if it did not fail.
        trace: traceback of an error that is not an `InputError`, or "".
    """

    payload: bytes
    failure: str = ""
    trace: str = ""


def failed_outcome(error: BaseException) -> CaseResult:
    """Return the outcome of a case that raised an error."""
    return CaseResult(b"", reason(error), bug_traceback(error))


def attempt(function: CaseFunction | bytes, case: Mapping[str, str]) -> CaseResult:
    """Call a function on a case; an exception fails this case alone.

    Args:
        function: the function, or its pickle by `cloudpickle.dumps`, because unpickling imports code and may fail.
        case: its argument.
    """
    try:
        function = cloudpickle.loads(function) if isinstance(function, bytes) else function
        payload = function(case)
        if not isinstance(payload, bytes):
            raise TypeError(f"the function returned {type(payload).__name__}, not bytes")
    except Exception as error:
        return failed_outcome(error)
    return CaseResult(payload)


def attempt_alone(packed: bytes, case: Mapping[str, str]) -> CaseResult:
    """Call a function on a case in a separate process, which may crash.

    Args:
        packed: the function as `cloudpickle.dumps` packs it.
        case: its argument.
    """
    task = cloudpickle.dumps((packed, case))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "scripts.cohort.attempts"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        with suppress(BrokenPipeError):  # it crashed already; its exit code is reported below
            process.stdin.write(len(task).to_bytes(_SIZE_BYTES) + task)
            process.stdin.flush()  # stays open: the process exits when this end closes
        answer = process.stdout.read()
        code = process.wait()
    if code != 0:
        return CaseResult(b"", f"its process crashed twice, the second time with {_cause(code)}")
    return CaseResult(*cloudpickle.loads(answer))


def _cause(code: int) -> str:
    """Describe how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def _end_with_parent() -> None:
    """Exit when standard input closes, which means that the worker is gone."""
    sys.stdin.buffer.raw.read()
    os._exit(1)


def _read(size: int) -> bytes:
    """Read exactly `size` bytes; exit if the worker is gone."""
    data = b""
    while len(data) < size:
        part = sys.stdin.buffer.raw.read(size - len(data))
        if not part:
            os._exit(1)
        data += part
    return data


def main() -> None:
    """Run one task from standard input; what the function prints goes to standard error."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task = _read(int.from_bytes(_read(_SIZE_BYTES)))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    packed, case = cloudpickle.loads(task)
    outcome = attempt(packed, case)
    with os.fdopen(answers, "wb") as file:
        file.write(cloudpickle.dumps(tuple(outcome)))


if __name__ == "__main__":
    main()
