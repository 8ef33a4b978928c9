"""Settings as they arrive from the command line of `monai.bundle`."""

from __future__ import annotations


def flag(value: bool | str, name: str = "flag") -> bool:
    """Read a yes/no setting, which `--name true` delivers as text: `bool("false")` would be true.

    Args:
        value: a bool, or `"true"` or `"false"` in any case.
        name: named in the message.

    Raises:
        ValueError: any other value.
    """
    choice = {"true": True, "false": False}.get(str(value).lower())
    if choice is None:
        raise ValueError(f"{name} is {value!r}: give true or false.")
    return choice
