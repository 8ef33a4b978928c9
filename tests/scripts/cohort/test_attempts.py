import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

from scripts.cohort.attempts import attempt, attempt_alone
from scripts.common.errors import InputError

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def with_bug(case):
    return {}["missing key"]


def with_bad_input(case):
    raise InputError(f"{case['image']}: no such file; correct the path.")


def wrapped(function):
    """Raise as MONAI does: with an error around that of the transform."""

    def call(case):
        try:
            return function(case)
        except Exception as error:
            raise RuntimeError("applying transform") from error

    return call


@pytest.mark.parametrize("call", [attempt, lambda function, case: attempt_alone(cloudpickle.dumps(function), case)])
@pytest.mark.parametrize("wrap", [lambda function: function, wrapped])
def test_bug_has_a_traceback_and_bad_input_has_none(call, wrap):
    bug = call(wrap(with_bug), {"image": "a.nii"})
    assert bug.failure == "KeyError: 'missing key'"
    assert 'return {}["missing key"]' in bug.trace
    assert "with_bug" in bug.trace
    bad = call(wrap(with_bad_input), {"image": "a.nii"})
    assert bad == (b"", "a.nii: no such file; correct the path.", "")


def test_function_that_cannot_be_unpickled_fails_the_case_with_a_traceback():
    outcome = attempt(b"not a pickle", {"image": "a.nii"})
    assert outcome.payload == b""
    assert "UnpicklingError" in outcome.failure
    assert "cloudpickle.loads" in outcome.trace


def test_process_of_a_crashing_case_ends_with_its_worker():
    task = cloudpickle.dumps((cloudpickle.dumps(lambda case: time.sleep(300)), {}))
    command, processes = [sys.executable, "-m", "scripts.cohort.attempts"], []
    for sent in (task, task[:50]):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[3])
        process.stdin.write(len(task).to_bytes(8) + sent)
        process.stdin.close()
        processes.append(process)
    assert [process.wait(60) for process in processes] == [1, 1]
