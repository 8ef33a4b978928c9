"""Reading prompts: a file of them, or a list of organs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from scripts.common.errors import InputError
from scripts.common.label_maps import MAX_CLASS_ID
from scripts.common.names import printable
from scripts.common.organs import ORGANS, foreground_classes

Space = Literal["voxel", "RAS", "LPS"]
SPACES: tuple[Space, ...] = get_args(Space)
ALL_ORGANS = "all"
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


def read_prompts(path: Path) -> list[Prompt]:
    """Read a file of prompts; see `PromptBook`."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = [_cells(row) for row in csv.DictReader(file, strict=True)]
        else:
            rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{printable(path)}: cannot be read as prompts ({error}); {_FORMS}.") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{printable(path)}: holds no prompts; {_FORMS}.")
    return [checked(row, f"{printable(path)}, prompt {number}") for number, row in enumerate(rows, start=1)]


def _cells(row: Mapping[str | None, Any]) -> dict[str, Any]:
    """Turn the cells of a CSV into what JSON gives."""
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
    lists = {key: row.get(key) or [] for key in ("points", "negative")}
    if wrong := next((key for key, points in lists.items() if not isinstance(points, list | tuple)), None):
        raise InputError(f"{where}: {wrong} is {lists[wrong]!r:.100}; give a list of points, [[x, y, z]].")
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
    if not isinstance(class_id, int) or not 0 <= class_id <= MAX_CLASS_ID:
        raise InputError(f"{where}: class_id is {class_id!r}; give a whole number from 1 to {MAX_CLASS_ID}.")
    return Prompt(**texts, **lists, box=box, space=space, class_id=class_id)


def _numbers(given: Any, count: int, key: str, where: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in given)
    except (TypeError, ValueError):
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
        content = json.loads(path.read_text(encoding="utf-8"))
        if "network_data_format" in content:
            content = content["network_data_format"]["outputs"]["pred"]["channel_def"]
        names = content.get("labels", content)
        organs = foreground_classes({key: name for key, name in names.items() if key != "0"})
        if not organs or max(organs) > MAX_CLASS_ID:
            raise ValueError(f"needs organs, with ids from 1 to {MAX_CLASS_ID}")
        return organs
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f'organs is {printable(path)}: {reason}; give {ALL_ORGANS}, or a JSON file such as {{"1": "liver"}}.'
        ) from error
