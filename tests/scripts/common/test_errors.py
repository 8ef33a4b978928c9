import json
import logging
import re
import subprocess
import sys
from pydoc import ErrorDuringImport, locate

import pytest
import torch

from scripts.common.errors import InputError, log_failure, print_error, raise_all, reason, root_cause
from tests.conftest import ROOT


def raised(function):
    """Call a function and return what it raises, traceback included."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        function()
    return caught.value


def raise_wrapped(error):
    """Raise an error as MONAI does if a component raises it."""
    try:
        raise error
    except Exception as cause:
        raise RuntimeError("Failed to instantiate component") from cause


def raise_wrapped_twice(error):
    try:
        raise_wrapped(error)
    except RuntimeError as cause:
        raise RuntimeError("applying transform") from cause


def unpack_too_few():
    """A bug: a ValueError, but no error in the user's input."""
    for _, _ in [(1,)]:
        pass


@pytest.mark.parametrize("wrap", [raise_wrapped, raise_wrapped_twice])
def test_reason_of_wrapped_input_error_is_its_message(wrap):
    assert reason(raised(lambda: wrap(InputError("amp is 'maybe': give true or false.")))) == (
        "amp is 'maybe': give true or false."
    )


def test_reason_of_other_errors_names_their_type():
    assert reason(raised(lambda: raise_wrapped(KeyError("image")))) == "KeyError: 'image'"
    assert reason(raised(unpack_too_few)) == "ValueError: not enough values to unpack (expected 2, got 1)"


def test_reason_of_an_error_without_message_is_its_type():
    assert reason(EOFError()) == "EOFError"


def test_reason_is_one_line():
    assert reason(InputError("a.json: 2 problems\n  first\n  second")) == "a.json: 2 problems first second"


def test_reason_of_out_of_memory_names_the_settings():
    text = reason(torch.OutOfMemoryError("CUDA out of memory."))
    assert text.endswith("CUDA out of memory. (lower sw_batch_size, batch_size or patch_size, or set sw_device to cpu)")


def test_root_cause_is_the_first_input_error_or_else_the_last_cause():
    inner = KeyError("first")
    outer = raised(lambda: raise_wrapped(inner))
    assert root_cause(outer) is inner
    refused = InputError("refused")
    refused.__cause__ = inner
    assert root_cause(raised(lambda: raise_wrapped(refused))) is refused


def test_error_raised_while_an_input_error_is_handled_is_not_hidden():
    def handle_badly():
        try:
            raise InputError("refused")
        except InputError:
            unpack_too_few()

    assert reason(raised(handle_badly)).startswith("ValueError: not enough values")


def test_root_cause_of_an_import_that_monai_tries_is_what_the_module_raised(tmp_path, monkeypatch):
    """MONAI imports components with `pydoc.locate`, which wraps errors without `raise ... from`."""
    (tmp_path / "failing_module.py").write_text("raise ZeroDivisionError('while importing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = raised(lambda: locate("failing_module.Component"))
    assert isinstance(error, ErrorDuringImport)
    assert reason(error) == "ZeroDivisionError: while importing"


def printed(error, capsys):
    print_error(type(error), error, error.__traceback__)
    return capsys.readouterr().err


def test_input_error_is_printed_as_its_message_alone(capsys):
    error = raised(lambda: raise_wrapped(InputError("list.json: 1 problem\ntest[0]: is 7")))
    assert printed(error, capsys) == "\nerror: list.json: 1 problem\ntest[0]: is 7\n"


def test_bug_is_printed_with_type_and_traceback(capsys):
    text = printed(raised(lambda: raise_wrapped(raised(unpack_too_few))), capsys)
    assert text.startswith("Traceback (most recent call last):")
    assert "in unpack_too_few" in text
    assert text.endswith("\nerror: ValueError: not enough values to unpack (expected 2, got 1)\n")


def test_keyboard_interrupt_is_printed_on_one_line(capsys):
    text = printed(raised(lambda: (_ for _ in ()).throw(KeyboardInterrupt)), capsys)
    assert text == "\nstopped by Ctrl-C: what was finished is kept; a training continues with resume true\n"


@pytest.mark.parametrize(
    ("stop", "code", "text"), [(KeyboardInterrupt(), 130, "stopped by"), (SystemExit(143), 143, "")]
)
def test_stop_while_monai_imports_a_component_is_no_error_of_the_import(stop, code, text, capsys):
    """`pydoc.locate` wraps Ctrl-C and SIGTERM too."""
    error = ErrorDuringImport("module", (type(stop), stop, None))
    with pytest.raises(SystemExit) as end:
        print_error(type(error), error, None)
    assert end.value.code == code
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert text in printed


@pytest.mark.parametrize(("error", "has_traceback"), [(InputError("a.nii: no such file"), False), (KeyError(1), True)])
def test_failed_case_is_logged_with_a_traceback_unless_the_input_was_wrong(error, has_traceback, caplog):
    log_failure(logging.getLogger("test"), "patient 1", raised(lambda: raise_wrapped(error)))
    (record,) = caplog.records
    assert record.getMessage() == f"case patient 1 failed: {reason(error)}"
    assert (record.exc_info is not None) == has_traceback


def test_problems_are_raised_together_one_per_line():
    with pytest.raises(InputError, match=re.escape("list.json: 2 problems; correct them\na: wrong\nb: wrong")):
        raise_all(["a: wrong", "b: wrong"], "list.json", "correct them")
    with pytest.raises(InputError, match=r"^list\.json: 1 problem; correct it\na: wrong$"):
        raise_all(["a: wrong"], "list.json", "correct it")
    raise_all([], "list.json", "correct them")


def test_other_programs_keep_their_excepthook():
    code = "import sys; before = sys.excepthook; import scripts.common.errors; assert sys.excepthook is before"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_bug_in_a_bundle_run_ends_with_its_traceback(tmp_path):
    """A ValueError of our own code was once shown without its traceback, as if the input were wrong."""
    flip = {"_target_": "scripts.data.transforms.RandLeftRightFlipd", "keys": "label", "pairs": [[2]]}
    (tmp_path / "bug.json").write_text(json.dumps({"flip": flip, "run": ["$@flip"]}))
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(tmp_path / "bug.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "in __init__\n    self.swapped = " in done.stderr
    assert done.stderr.endswith("\nerror: ValueError: not enough values to unpack (expected 2, got 1)\n")


class Unreadable(torch.utils.data.Dataset):
    """Its only item raises as MONAI does: an error of the input, wrapped by that of a transform."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise InputError("a.nii.gz: cannot be read;\ncopy it again.")
        except InputError as error:
            raise RuntimeError("applying transform") from error


@pytest.mark.parametrize("num_workers", [0, 1])
def test_input_error_of_a_loader_worker_is_found(num_workers):
    """A worker process sends text, without the chain of causes."""
    with pytest.raises(RuntimeError) as caught:
        list(torch.utils.data.DataLoader(Unreadable(), num_workers=num_workers))
    found = root_cause(caught.value)
    assert isinstance(found, InputError)
    assert reason(caught.value) == "a.nii.gz: cannot be read; copy it again."
