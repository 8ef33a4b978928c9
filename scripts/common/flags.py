"""Yes/no settings."""

from __future__ import annotations

from scripts.common.errors import InputError


def parse_flag(value: bool | str, name: str = "flag") -> bool:
    """Parse a yes/no setting, which `--name true` gives as text: `bool("false")` would be true.

    Args:
        value: a bool, or `"true"` or `"false"` in any case.
        name: named in the message.

    Raises:
        InputError: any other value.

    >>> parse_flag("False")
    False
    """
    choice = {"true": True, "false": False}.get(str(value).lower())
    if choice is None:
        raise InputError(f"{name} is {value!r}: give true or false.")
    return choice
