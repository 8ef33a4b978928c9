"""Settings of the configs: their types, ranges and meanings, which all bundles share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

Declaration = Mapping[str, Any]

_FORMATS = {
    "device": "a device such as cuda:0 or cpu",
    "auto_or_device": "auto, or a device such as cuda:0 or cpu",
    "path": "a path",
}
_NUMERALS = ("no", "one", "two", "three", "four", "five", "six")


@cache
def declarations() -> dict[str, Declaration]:
    """Return setting to declaration, a JSON schema (draft 7) whose description is the meaning of the setting.

    `notAbove` names a setting that this one must not exceed: its value or, of a list, its length. `default` stands in
    the docs for a default that depends on the machine. `renamed` has the new names of values. An id with `#` is an
    argument of a component.
    """
    return json.loads((Path(__file__).parent / "assets" / "settings.json").read_text(encoding="utf-8"))


def setting_problems(values: Mapping[str, Any]) -> list[str]:
    """Compare settings with their declarations.

    Args:
        values: setting to value; text `"true"` and `"false"` are accepted for yes/no settings. Settings without a
            declaration are accepted.

    Returns:
        One line per problem, which names the setting, its value and what to give.

    >>> setting_problems({"max_epochs": 1.5, "seed": 0})
    ['max_epochs is 1.5: give a whole number from 1']
    """
    known = {name: value for name, value in values.items() if name in declarations()}
    wrong = {name: value for name, value in known.items() if not _is_valid(value, declarations()[name])}
    problems = [f"{name} is {value!r:.200}: {_fix(value, declarations()[name])}" for name, value in wrong.items()]
    for name, value in known.items():
        limit = declarations()[name].get("notAbove")
        if limit in known and not {name, limit} & set(wrong) and value > (highest := _size(known[limit])):
            problems.append(f"{name} is {value}, above the {highest} of {limit}: give {highest} or less")
    return problems


def describe(declaration: Declaration) -> str:
    """Describe the values that a setting takes.

    >>> describe({"type": "number", "minimum": 0, "exclusiveMaximum": 1})
    'a number from 0 below 1'
    """
    kinds = [declaration["type"]] if isinstance(declaration.get("type"), str) else declaration.get("type", [])
    return _describe_values(declaration, kinds) + (" or '$None'" if "null" in kinds else "")


def _describe_values(declaration: Declaration, kinds: list[str]) -> str:
    if "enum" in declaration:
        one_of = "one of " if len(declaration["enum"]) > 1 else ""
        return f"{one_of}{', '.join(map(str, declaration['enum']))}"
    if "boolean" in kinds:
        return "true or false"
    if "array" in kinds:
        return _describe_list(declaration)
    if "string" in kinds:
        return _FORMATS.get(declaration.get("format"), "text")
    return f"a {_describe_number(declaration, whole='integer' in kinds)}"


def _describe_list(declaration: Declaration) -> str:
    items = declaration["items"]
    if isinstance(items, list):
        return f"{_NUMERALS[len(items)]} values: {', '.join(map(describe, items))}"
    if "enum" in items:
        return f"some of {', '.join(map(str, items['enum']))}, each once"
    if items["type"] == "string":
        return "names, each once"
    numbers = _describe_number(items, whole=items["type"] == "integer", plural="s")
    if "maxItems" not in declaration:
        return f"{numbers}, each once"
    largest = f", one of them from {declaration['contains']['minimum']}" if "contains" in declaration else ""
    return f"{_NUMERALS[declaration['minItems']]} {numbers}{largest}"


def _describe_number(declaration: Declaration, *, whole: bool, plural: str = "") -> str:
    ends = [
        f"{word} {declaration[key]}"
        for key, word in (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"))
        if key in declaration
    ]
    ends += [f"below {declaration['exclusiveMaximum']}"] if "exclusiveMaximum" in declaration else []
    if "multipleOf" in declaration:
        return f"multiple{plural} of {declaration['multipleOf']}" + (f" {ends[0]}" if ends else "")
    return f"{'whole ' if whole else ''}number{plural} {' '.join(ends)}".rstrip()


def _fix(value: Any, declaration: Declaration) -> str:
    """Describe what to give, with the nearest valid multiples."""
    renamed = declaration.get("renamed", {}).get(value) if isinstance(value, str) else None
    fix = f"give {describe(declaration)}" + (f"; {value} is now called {renamed}" if renamed else "")
    step = _items(declaration).get("multipleOf")
    numbers = value if isinstance(value, list | tuple) else [value]
    if step and all(isinstance(number, int) for number in numbers):
        nearest = [max(step, round(number / step) * step) for number in numbers]
        nearest = nearest if isinstance(value, list | tuple) else nearest[0]
        fix += f", such as {nearest}" if _is_valid(nearest, declaration) else ""
    return fix


def _items(declaration: Declaration) -> Declaration:
    items = declaration.get("items", declaration)
    return items if isinstance(items, Mapping) else {}


def _size(value: Any) -> float:
    return len(value) if isinstance(value, list | tuple) else value


def _is_valid(value: Any, declaration: Declaration) -> bool:
    """Validate a value; types are those of Python, so 5.0 is not an integer and NaN not a number."""
    return _validator()(declaration, format_checker=_formats()).is_valid(value)


@cache
def _validator() -> Any:
    from jsonschema import Draft7Validator, validators  # here, as programs that import a transform may lack it

    types = Draft7Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: type(value) is int,
            "number": lambda _, value: type(value) in (int, float) and abs(value) < float("inf"),
            "boolean": lambda _, value: str(value).lower() in ("true", "false"),
            "array": lambda _, value: isinstance(value, list | tuple),
        }
    )
    return validators.extend(Draft7Validator, type_checker=types)


@cache
def _formats() -> Any:
    from jsonschema import FormatChecker

    checker = FormatChecker(formats=())
    checker.checks("device")(_is_device)
    checker.checks("auto_or_device")(lambda value: value == "auto" or _is_device(value))
    return checker


def _is_device(value: Any) -> bool:
    """Return whether a value is a device of this machine; values of other types are left to the type."""
    import torch  # imported by every run of a bundle

    if not isinstance(value, str):
        return True
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError):  # AssertionError: torch without CUDA
        return False
    return True
