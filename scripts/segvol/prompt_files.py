"""Reading prompts: a file of them, or a list of organs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from scripts.common.errors import InputError
from scripts.common.files import require_regular_file
from scripts.common.label_maps import MAX_CLASS_ID
from scripts.common.names import printable, safe_name
from scripts.common.organs import ORGANS, foreground_classes

Space = Literal["voxel", "RAS", "LPS"]
SPACES: tuple[Space, ...] = get_args(Space)
ALL_ORGANS = "all"
MAX_FILE_BYTES = 1 << 26
MAX_LETTERS, MAX_POINTS = 200, 1000
"""Of a name or a text, and of a prompt; the text tower takes 77 tokens, and training draws 21 points."""
_FORMS = 'give a list such as [{"case": "patient1", "text": "liver", "box": [x, y, z, x, y, z]}], or a CSV'


@dataclass(frozen=True)
class Prompt:
    """What is asked of a case, or of each case; it becomes one class of the result.

    Attributes:
        name: of the class; by default the text, or "prompt" and a number.
        case: name of the case; "": each.
        text: name of the organ, or "".
        points: of the structure, in three numbers each.
        negative: points that are not of it.
        box: its least and largest corner, six numbers, or empty; the voxels of both belong to it.
        space: of points and box: "voxel" indices of the file, from 0, or mm in "RAS" or "LPS".
        class_id: of the class in the label map; 0: not given yet.
    """

    name: str = ""
    case: str = ""
    text: str = ""
    points: tuple[tuple[float, ...], ...] = ()
    negative: tuple[tuple[float, ...], ...] = ()
    box: tuple[float, ...] = ()
    space: Space = "voxel"
    class_id: int = 0

    @property
    def kind(self) -> str:
        """What it consists of, such as "box+text"."""
        parts = {"point": self.points or self.negative, "box": self.box, "text": self.text}
        return "+".join(name for name, given in parts.items() if given)

    @property
    def file_part(self) -> str:
        """Its name in the names of files."""
        return safe_name("_".join(self.name.split()))


def read_prompts(path: Path) -> list[Prompt]:
    """Read a file of prompts; see `PromptBook`."""
    try:
        text = _read_text(path)
        if path.suffix.lower() == ".csv":
            rows = [_cells(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
        else:
            rows = json.loads(text)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{printable(path)}: cannot be read as prompts ({reason}); {_FORMS}.") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{printable(path)}: holds no prompts; {_FORMS}.")
    return [checked(row, f"{printable(path)}, prompt {number}") for number, row in enumerate(rows, start=1)]


def _read_text(path: Path) -> str:
    """Read a whole file of UTF-8.

    Raises:
        InputError: it is no regular file or has more than `MAX_FILE_BYTES`.
        OSError: it cannot be read.
        ValueError: it is not UTF-8.
    """
    size = require_regular_file(path, "a file").st_size
    if size > MAX_FILE_BYTES:
        raise InputError(f"{printable(path)}: has {size / 1e6:.0f} MB; give at most {MAX_FILE_BYTES / 1e6:.0f} MB.")
    return path.read_bytes().decode("utf-8-sig")


def _cells(row: Mapping[str | None, Any]) -> dict[str, Any]:
    """Turn the cells of a CSV into what JSON gives."""
    if None in row:
        raise ValueError(f"a row has more cells than columns: {row[None]!r:.100}")
    given = {str(key): (value or "").strip() for key, value in row.items() if isinstance(value, str) and value.strip()}
    lists = {
        key: [cell.split() for cell in given.pop(key).split(";")] for key in ("points", "negative") if key in given
    }
    numbers = {key: [list(map(float, point)) for point in points] for key, points in lists.items()}
    box = {"box": list(map(float, given.pop("box").split()))} if "box" in given else {}
    return {**given, **numbers, **box, **({"class_id": int(given["class_id"])} if "class_id" in given else {})}


def checked(row: Mapping[str, Any], where: str) -> Prompt:
    """Return a prompt of what a file or the command line gives.

    Args:
        row: attributes of `Prompt`.
        where: named in the messages.

    Raises:
        InputError: an attribute is unknown or cannot be.
    """
    known = [field.name for field in fields(Prompt)]
    if unknown := sorted(set(row) - set(known)):
        raise InputError(f"{where}: has {unknown[0]!r}; give some of {', '.join(known)}.")
    texts = {key: row.get(key, "") for key in ("name", "case", "text")}
    if wrong := next((key for key, value in texts.items() if not isinstance(value, str)), None):
        raise InputError(f"{where}: {wrong} is {texts[wrong]!r}; give text.")
    texts = {key: " ".join(value.split()) for key, value in texts.items()}
    for key in ("name", "text"):
        if problem := _text_problem(texts[key]):
            raise InputError(f"{where}: {key} {problem}.")
    lists = {key: row.get(key) or [] for key in ("points", "negative")}
    if wrong := next((key for key, points in lists.items() if not isinstance(points, list | tuple)), None):
        raise InputError(f"{where}: {wrong} is {lists[wrong]!r:.100}; give a list of points, [[x, y, z]].")
    if (count := sum(map(len, lists.values()))) > MAX_POINTS:
        raise InputError(f"{where}: has {count} points; give at most {MAX_POINTS}.")
    lists = {key: tuple(_numbers(point, 3, key, where) for point in points) for key, points in lists.items()}
    box = _numbers(row["box"], 6, "box", where) if row.get("box") else ()
    space = row.get("space", "voxel")
    if space not in SPACES:
        raise InputError(f"{where}: space is {space!r}; give one of {', '.join(SPACES)}.")
    _check_box(box, space, where)
    if not (texts["text"] or lists["points"] or box):
        only = "negative points alone" if lists["negative"] else "neither text, points nor box"
        raise InputError(f"{where}: has {only}; say what to segment.")
    class_id = row.get("class_id", 0)
    if not isinstance(class_id, int) or isinstance(class_id, bool) or not 0 <= class_id <= MAX_CLASS_ID:
        raise InputError(f"{where}: class_id is {class_id!r}; give a whole number from 1 to {MAX_CLASS_ID}.")
    return Prompt(**texts, **lists, box=box, space=space, class_id=class_id)


def _text_problem(text: str) -> str:
    """Describe why a text cannot stand in tables, pictures and file names; "" if it can."""
    if len(text) > MAX_LETTERS:
        return f"has {len(text)} letters; give at most {MAX_LETTERS}"
    if not text.isprintable():
        return f"is {text!r}, which cannot be printed; leave out control characters"
    if text.startswith(("=", "+", "-", "@")):
        return f"is {text!r}, which spreadsheets take for a formula; begin with a letter or a digit"
    return ""


def _numbers(given: Any, count: int, key: str, where: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in given) if not isinstance(given, str | Mapping) else ()
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        kind = "x, y, z" if count == 3 else "x, y, z of the least corner, then of the largest"
        raise InputError(f"{where}: {key} holds {given!r:.100}; give {count} numbers, {kind}.")
    return numbers


def _check_box(box: tuple[float, ...], space: Space, where: str) -> None:
    for axis, low, high in zip("xyz", box[:3], box[3:], strict=False):  # there may be no box
        if low > high or (low == high and space != "voxel"):
            kind = "inverted" if low > high else "empty"
            raise InputError(
                f"{where}: box is {kind} along {axis}, from {low:g} to {high:g}; give x, y, z of the least corner, "
                "then of the largest."
            )


def read_organs(source: str | Path) -> dict[int, str]:
    """Return class id to organ; see `PromptBook`."""
    if str(source) == ALL_ORGANS:
        return dict(ORGANS)
    path = Path(source)
    try:
        content = json.loads(_read_text(path))
        if "network_data_format" in content:
            content = content["network_data_format"]["outputs"]["pred"]["channel_def"]
        names = content.get("labels", content)
        organs = foreground_classes({key: name for key, name in names.items() if key != "0"})
        if not organs or max(organs) > MAX_CLASS_ID:
            raise ValueError(f"needs organs, with ids from 1 to {MAX_CLASS_ID}")
        if problem := next(filter(None, map(_text_problem, organs.values())), ""):
            raise ValueError(f"a name {problem}")
        return organs
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f'organs is {printable(path)}: {reason}; give {ALL_ORGANS}, or a JSON file such as {{"1": "liver"}}.'
        ) from error
