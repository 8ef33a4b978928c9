"""The command line of `python -m monai.bundle run`: flags that no config has, and settings out of their ranges."""

from __future__ import annotations

import atexit
import inspect
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise, takewhile
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

from scripts.common.errors import STOPPED, InputError, print_error, raise_all, reason
from scripts.common.settings import declarations, setting_problems

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

_FLAG = re.compile(r"--|-[a-zA-Z]")  # as Fire 0.7 decides; -175 is a number
_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


def start_run() -> None:
    """Check the command line, and show errors, Ctrl-C and SIGTERM as one message each.

    `scripts/__init__.py` calls this in `python -m monai.bundle`. The configs import `scripts` first, so that a wrong
    setting is refused before anything else happens; MONAI ignores an exception of such an import, but not `SystemExit`.

    Raises:
        SystemExit: a setting is wrong.
    """
    sys.excepthook = print_error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        check_command_line(sys.argv)
    except InputError as error:
        print_error(type(error), error, None)
        raise SystemExit(1) from None


def _exit_on_sigterm(*_: object) -> None:
    """End as Ctrl-C does: temporary files are removed and bars closed before the message is printed."""
    atexit.register(sys.stderr.write, f"\nstopped by SIGTERM: {STOPPED}\n")
    raise SystemExit(128 + signal.SIGTERM)


def check_command_line(argv: Sequence[str]) -> None:
    """Refuse flags of `python -m monai.bundle run` that have no effect, and settings out of their ranges.

    MONAI 1.6.1 adds an unknown `--key` to the config without a warning, so that a misspelt setting has no effect, and
    ignores `None`. The settings of the configs themselves are checked too.

    Args:
        argv: `sys.argv`, such as `[..., "run", "--config_file", "configs/train.json", "--max_epochs", "5"]`.

    Raises:
        InputError: names each flag without effect, with the nearest known one or the config that has it, and each
            setting that `scripts.common.settings` refuses.
    """
    given = given_settings(argv)
    files = _config_files(given.get("config_file", ""))
    if argv[1:2] != ["run"] or not files or not all(file.is_file() for file in files):
        return  # MONAI reports missing files
    own = _run_arguments(with_tracking="tracking" in given)
    overrides = {_normalized(name): value for name, value in given.items() if name not in own}
    parser = _parser(files)
    settings = [name for name in declarations() if name not in parser or not isinstance(parser[name], dict)]
    problems = {name: _flag_problem(name, value, parser, files, own) for name, value in overrides.items()}
    parser.update({name: value for name, value in overrides.items() if not problems[name]})
    found = [*filter(None, problems.values()), *_value_problems(settings, parser)]
    raise_all(found, "command line", "correct or leave out these settings")


def given_settings(argv: Sequence[str]) -> dict[str, Any]:
    """Return what a command line of `python -m monai.bundle` and its `args_file` set, `config_file` included."""
    given = dict(_parse_flags(takewhile(lambda word: word != "--", argv[2:])))
    if Path(str(given.get("args_file", ""))).is_file():
        given = {**_read_config(Path(given["args_file"])), **given}
    return given


def _parse_flags(words: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield names and values as Fire 0.7 parses them: `--name value`, `--name=value`, `--name` and `--noname`."""
    from fire.parser import DefaultParseValue  # already imported by `python -m monai.bundle`
    from monai.bundle import run

    for word, following in pairwise([*words, "--"]):
        if not _FLAG.match(word):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if len(name) == 1:  # the initial of one argument
            name = next((full for full in inspect.signature(run).parameters if full.startswith(name)), name)
        if equals or not _FLAG.match(following):
            yield name, DefaultParseValue(value if equals else following)
        else:
            yield name.removeprefix("no"), not name.startswith("no")


def _config_files(value: str | Sequence[str]) -> list[Path]:
    """Parse `config_file`: a path, paths with commas between them, or a list."""
    parts = value.split(",") if isinstance(value, str) else value
    return [Path(part.strip()) for part in parts if part.strip()]


def _read_config(path: Path) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    return ConfigParser.load_config_file(path)


def _parser(files: Sequence[Path]) -> ConfigParser:
    """Read the configs as MONAI does."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    metadata = files[0].parent / "metadata.json"
    parser.read_meta(str(metadata) if metadata.is_file() else {})
    return parser


def _run_arguments(*, with_tracking: bool) -> set[str]:
    """Return the flags that MONAI itself takes."""
    from monai.bundle import run
    from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

    tracking = DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"] if with_tracking else ()
    return {*inspect.signature(run).parameters, *tracking}


def _normalized(name: str) -> str:
    """Return an id such as `train#trainer#max_epochs` of `train::trainer::max_epochs` or `+train#handlers`."""
    return name.lstrip("+").replace("::", "#")


def _flag_problem(name: str, value: Any, parser: ConfigParser, files: Sequence[Path], own: set[str]) -> str:
    """Describe why a flag would have no effect, or another one than its text says; "" if it is right."""
    top, *path = name.split("#")
    if top not in parser.config:
        return _describe_unknown(top, {*parser.config, *own}, files)
    if path and (problem := _path_problem(name, parser)):
        return problem
    if value is None:
        return f"--{name}: MONAI ignores None on the command line; give '$None'"
    if path and str(value) in ("true", "false"):
        return f"--{name}: {value} is text for a part of a component; give {str(value).capitalize()}"
    return ""


def _path_problem(name: str, parser: ConfigParser) -> str:
    """Describe why an id like `network_def#depths` leads nowhere; "" if it does not."""
    parent, _, last = name.rpartition("#")
    if parent not in parser or not isinstance(parser[parent], dict | list):
        return f"--{name}: the config has no component {parent}"
    holder = parser[parent]
    arguments = _arguments(holder) if isinstance(holder, dict) else []
    if name in parser or arguments is None:
        return ""
    return "" if last in arguments else f"--{name}: {parent} has no {last}{_nearest(last, arguments, f'--{parent}#')}"


def _arguments(config: dict[str, Any]) -> list[str] | None:
    """Return the arguments that a component takes; None if it takes any, or is not a component."""
    from monai.bundle import ConfigComponent

    target = ConfigComponent(config).resolve_module_name() if "_target_" in config else None
    found = locate(target) if isinstance(target, str) else None
    if not callable(found):
        return None
    names = [*ConfigComponent.non_arg_keys]
    for part in _with_parents(found):
        parameters = inspect.signature(part).parameters.values()
        names += [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            return names
    return None


def _with_parents(component: Any) -> list[Any]:
    """Return a component and, for classes of `scripts`, which pass other arguments on, its parents in order."""
    if inspect.isclass(component) and component.__module__.startswith("scripts."):
        return [parent for parent in component.__mro__ if "__init__" in vars(parent) and parent is not object]
    return [component]


def _value_problems(settings: Iterable[str], parser: ConfigParser) -> list[str]:
    """Evaluate settings, and compare them with their declarations."""
    values, unevaluated = {}, []
    for name in filter(parser.__contains__, settings):
        try:
            value = parser.get_parsed_content(name)
        except Exception as error:
            unevaluated.append(f"{name} is {parser[name]!r:.200}: cannot be evaluated ({reason(error)})")
        else:
            values[name] = value if isinstance(value, _PLAIN) else str(value)
    return setting_problems(values) or unevaluated


def _describe_unknown(name: str, known: Iterable[str], files: Sequence[Path]) -> str:
    """Describe an unknown flag: which other config has it, or else the nearest known flag."""
    others = sorted({path for file in files for path in file.parent.glob("*.json")})
    owners = [other.name for other in others if other.name != "metadata.json" and name in _keys(other)]
    if owners:
        return f"--{name}: a setting of {' and '.join(owners)}, which --config_file does not list"
    return f"--{name}: not a setting of {', '.join(file.name for file in files)}{_nearest(name, known, '--')}"


def _keys(path: Path) -> set[str]:
    """Return the top-level keys of a config; none if it cannot be read, as it only serves a hint."""
    try:
        return set(_read_config(path))
    except (OSError, ValueError):
        return set()


def _nearest(name: str, known: Iterable[str], prefix: str) -> str:
    nearest = get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""
