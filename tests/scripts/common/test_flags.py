import re

import pytest

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag


@pytest.mark.parametrize(
    ("value", "parsed"),
    [("true", True), ("True", True), ("FALSE", False), ("false", False), (True, True), (False, False)],
)
def test_flag_is_parsed_from_bools_and_text(value, parsed):
    assert parse_flag(value) is parsed


@pytest.mark.parametrize("value", ["yes", "no", 1, 0, "1", "0", None, "", "true ", [], [True]])
def test_other_values_of_a_flag_are_refused(value):
    with pytest.raises(InputError, match=f"^resume is {re.escape(repr(value))}: give true or false\\.$"):
        parse_flag(value, "resume")
