"""Starting real programs in environments of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT_PYTHON = sys.executable
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""In all programs, so that sums are in the same order."""


def environment(name):
    """Return the Python of an environment that `make test-clients` makes; skip the test if there is none."""
    python = ROOT / ".venv-clients" / name / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{python} is absent; make test-clients makes it")
    return str(python)


def clean_environ(**more):
    """Return the environment variables of a shell that knows nothing of this project."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, **ONE_THREAD, "PYTHONDONTWRITEBYTECODE": "1", **more}


def run(python, *arguments, cwd, code=0, **environ):
    """Run Python to its end and return what it printed; fail with all of it if the exit code is another."""
    command = [python, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=clean_environ(**environ), capture_output=True, text=True, timeout=500)
    assert done.returncode == code, f"exit code {done.returncode} of {command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
