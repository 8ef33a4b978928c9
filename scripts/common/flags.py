"""Settings on the command line of `monai.bundle`: yes/no settings, and flags that no config has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError, raise_all

_FLAG = re.compile(r"--|-[a-zA-Z]")  # as Fire 0.7 decides; -175 is a number


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


def check_command_line(argv: Sequence[str]) -> None:
    """Refuse flags of `python -m monai.bundle run` that none of its configs has.

    MONAI 1.6.1 adds an unknown `--key` to the config without a warning, so that a misspelt setting has no effect. Only
    the first part of an id such as `network_def#depths` is checked: components take more arguments than a config lists.

    Args:
        argv: `sys.argv`, such as `[..., "run", "--config_file", "configs/train.json", "--max_epochs", "5"]`.

    Raises:
        InputError: names each unknown flag, with the nearest known one or the config that has it.
    """
    given = dict(_parse_flags(takewhile(lambda word: word != "--", argv[2:])))
    if Path(given.get("args_file", "")).is_file():
        given = {**_read_config(Path(given["args_file"])), **given}
    files = _config_files(given.get("config_file", ""))
    if argv[1:2] != ["run"] or not files or not all(file.is_file() for file in files):
        return  # MONAI reports missing files
    known = {_top(key) for file in files for key in _read_config(file)}
    known |= _run_arguments(with_tracking="tracking" in given)
    problems = [_describe_unknown(name, known, files) for name in map(_top, given) if name not in known]
    raise_all(problems, "command line", "correct or leave out these flags")


def _parse_flags(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield names and values as Fire 0.7 parses them: `--name value`, `--name=value`, `--name` and `--noname`."""
    for word, following in pairwise([*words, "--"]):
        if not _FLAG.match(word):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if equals or not _FLAG.match(following):
            yield name, value if equals else following
        else:
            yield name.removeprefix("no"), str(not name.startswith("no"))


def _config_files(value: str | Sequence[str]) -> list[Path]:
    """Parse the value of `--config_file`: a path, paths with commas between them, or a list as Python writes it."""
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
    return [Path(part.strip(" '\"")) for part in parts if part.strip()]


def _read_config(path: Path) -> dict[str, Any]:
    from monai.bundle import ConfigParser  # already imported by every run of a bundle

    return ConfigParser.load_config_file(path)


def _keys(path: Path) -> set[str]:
    """Return the top-level keys of a config; none if it cannot be read, as it only serves a hint."""
    try:
        return set(_read_config(path))
    except (OSError, ValueError):
        return set()


def _run_arguments(*, with_tracking: bool) -> set[str]:
    """Return the flags that MONAI itself takes."""
    from monai.bundle import run
    from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

    tracking = DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"] if with_tracking else ()
    return {*inspect.signature(run).parameters, "_meta_", *tracking}


def _top(name: str) -> str:
    """Return the first part of an id such as `train#trainer#max_epochs`, `train::trainer` or `+train#handlers`."""
    return name.lstrip("+").replace("::", "#").partition("#")[0]


def _describe_unknown(name: str, known: set[str], files: Sequence[Path]) -> str:
    """Describe an unknown flag: which other config has it, or else the nearest known flag."""
    others = sorted({path for file in files for path in file.parent.glob("*.json")})
    owners = [other.name for other in others if other.name != "metadata.json" and name in _keys(other)]
    if owners:
        return f"--{name}: a setting of {' and '.join(owners)}, which --config_file does not list"
    nearest = get_close_matches(name, sorted(known), n=1)
    hint = f"; did you mean --{nearest[0]}?" if nearest else ""
    return f"--{name}: not a setting of {', '.join(file.name for file in files)}{hint}"
