"""Run a command, stop it at random moments, run it again, and compare what it wrote; a program of its own.

`python -m tests.hostile.stopped_runs MODULE SIGNAL MOMENTS FOLDER ARGUMENT …`; the arguments hold OUT for a new folder.

It forks before any thread exists, so that many short runs need one start of Python.
"""

import os
import random
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path


def run(main, arguments, folder, *, number=0, at=0):
    """Run a command in a process of its own and send it a signal at a call of a function after it made its folder.

    Returns:
        How often it called functions since then, if it ended by itself, and its exit status.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), number)

        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

        def start(event, given):
            if event == "os.mkdir" and Path(given[0]) == folder:
                sys.setprofile(count)

        sys.addaudithook(start)
        try:
            code = main(arguments)
        except SystemExit as leaving:
            code = leaving.code
        except KeyboardInterrupt:
            code = 130
        sys.setprofile(None)
        os.write(writer, str(calls).encode())
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader) as file:
        return int(file.read() or 0), os.waitstatus_to_exitcode(status)


def written(folder):
    """Return path to content of all files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(module, number, moments, folder, arguments):
    main = import_module(module).main
    rng = random.Random(0)

    def started(out, **stop):
        return run(main, [argument.replace("OUT", str(out)) for argument in arguments], out, **stop)

    calls, status = started(folder / "whole")
    assert status == 0, f"exit code {status} undisturbed"
    whole = written(folder / "whole")
    for at in sorted(rng.sample(range(1, calls), moments)):
        out = folder / "stopped"
        _, status = started(out, number=number, at=at)
        where = f"stopped at call {at} of {calls}"
        left = written(out) if out.is_dir() else {}
        expected = {-9} if number == signal.SIGKILL else {130, 0 if left == whole else 130}  # 0: too late
        assert status in expected, f"{where}: exit code {status}"
        assert number == signal.SIGKILL or not [name for name in left if ".tmp-" in name], f"{where}: {sorted(left)}"
        complete = {name: data for name, data in left.items() if ".tmp-" not in name and ".lock" not in name}
        assert complete.items() <= whole.items(), f"{where}: half-written {sorted(complete)}"
        _, status = started(out)
        assert status == 0, f"{where}: exit code {status} of the second run"
        assert written(out) == whole, f"{where}: {sorted(written(out))} is not {sorted(whole)}"
        shutil.rmtree(out)


if __name__ == "__main__":
    check(sys.argv[1], signal.Signals[sys.argv[2]], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
