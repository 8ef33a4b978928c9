"""One case in a worker: what it yields or why it failed, and a process of its own for one that killed a worker."""

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

from scripts.errors import reason

CaseFunction = Callable[[Mapping[str, str]], bytes]
_SIZE_BYTES = 8


class Outcome(NamedTuple):
    """What became of a case: a payload, or the reason why there is none."""

    payload: bytes
    failure: str


def attempt(function: CaseFunction, case: Mapping[str, str]) -> Outcome:
    """Call a function on a case; what it raises costs this case alone."""
    try:
        payload = function(case)
        if not isinstance(payload, bytes):
            raise TypeError(f"the function returned {type(payload).__name__}, not bytes")
    except Exception as error:
        return Outcome(b"", reason(error))
    return Outcome(payload, "")


def attempt_alone(packed: bytes, case: Mapping[str, str]) -> Outcome:
    """Call a function on a case in a process of its own, which may die of it.

    Args:
        packed: the function as `cloudpickle.dumps` packs it.
        case: its argument.
    """
    task = cloudpickle.dumps((packed, case))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "scripts.cohort.attempts"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        with suppress(BrokenPipeError):  # it died already: its exit code tells
            process.stdin.write(len(task).to_bytes(_SIZE_BYTES) + task)
            process.stdin.flush()  # and stays open: its end tells the process that this one is gone
        answer = process.stdout.read()
        code = process.wait()
    if code != 0:
        return Outcome(b"", f"killed its process twice, the second time by {_cause(code)}")
    return Outcome(*cloudpickle.loads(answer))


def _cause(code: int) -> str:
    """Name what ended a process."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def _end_with_parent() -> None:
    """Wait for the end of standard input, which comes when the worker is gone, and end too."""
    sys.stdin.buffer.raw.read()
    os._exit(1)


def _read(size: int) -> bytes:
    """Read exactly `size` bytes, or end because the worker is gone."""
    data = b""
    while len(data) < size:
        part = sys.stdin.buffer.raw.read(size - len(data))
        if not part:
            os._exit(1)
        data += part
    return data


def main() -> None:
    """Answer one task from standard input; what the function prints goes to standard error."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task = _read(int.from_bytes(_read(_SIZE_BYTES)))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    packed, case = cloudpickle.loads(task)
    outcome = attempt(cloudpickle.loads(packed), case)
    with os.fdopen(answers, "wb") as file:
        file.write(cloudpickle.dumps(tuple(outcome)))


if __name__ == "__main__":
    main()
