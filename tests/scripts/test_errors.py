import subprocess
import sys

import pytest

from scripts.errors import reason
from scripts.settings import flag


def chained():
    try:
        try:
            flag("maybe", "resume")
        except ValueError as error:
            raise RuntimeError("Failed to instantiate component") from error
    except RuntimeError as error:
        return error


def test_reason_is_the_message_of_this_package_not_of_the_wrapper():
    assert reason(chained()) == "resume is 'maybe': give true or false."


def test_reason_of_a_foreign_error_is_where_the_chain_began():
    error = RuntimeError("wrapped")
    error.__cause__ = KeyError("no such key")
    assert reason(error) == "'no such key'"


def test_reason_of_an_error_without_words_is_its_kind():
    assert reason(EOFError()) == "EOFError"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), (True, True), (False, False)])
def test_flag_reads_the_words_of_the_command_line(text, value):
    assert flag(text) is value


def test_other_programs_keep_their_excepthook():
    code = "import sys; before = sys.excepthook; import scripts; assert sys.excepthook is before"
    subprocess.run([sys.executable, "-c", code], check=True)
