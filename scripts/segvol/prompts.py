"""What users ask for: texts, points and boxes, of a file or the command line."""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.common.organs import ORGANS, organ_ids, spoken_name
from scripts.segvol.prompt_files import Prompt, Space, checked, read_organs, read_prompts

logger = logging.getLogger(__name__)


class PromptBook:
    """The prompts of all cases; a file is read when it is needed first.

    Args:
        source: a JSON list of prompts or a CSV with the columns of `Prompt`, in which `x y z` is a point, `;` stands
            between points and a box is six numbers; "": none.
        text: names of organs, each of which becomes a class, for each case.
        point: a point for each case; with a single text or none.
        box: likewise, six numbers.
        space: of `point` and `box`.
        organs: instead of all these, a list of organs: "all" of `scripts.common.organs`, or a JSON file of id and name,
            such as metadata of a bundle, whose ids the result has.

    Raises:
        InputError: when they are needed: there is no prompt, one has neither text, point nor box, or numbers, names or
            ids that cannot be.

    >>> book = PromptBook(text=["liver", "left kidney"])
    >>> [(prompt.name, prompt.class_id, prompt.kind) for prompt in book.of("patient1")]
    [('liver', 1, 'text'), ('left kidney', 2, 'text')]
    """

    def __init__(
        self,
        source: str | Path = "",
        *,
        text: str | Sequence[str] = (),
        point: Sequence[float] | None = None,
        box: Sequence[float] | None = None,
        space: Space = "voxel",
        organs: str | Path = "",
    ) -> None:
        self.source, self.organs = str(source), str(organs)
        self.texts = [text] if isinstance(text, str) else list(text or ())
        self.point, self.box, self.space = list(point or ()), list(box or ()), space

    @cached_property
    def prompts(self) -> list[Prompt]:
        """All prompts, named and numbered."""
        short = bool(self.texts or self.point or self.box)
        if (given := [bool(self.source), short, bool(self.organs)].count(True)) != 1:
            what = "no prompt" if not given else "several kinds of prompts"
            raise InputError(f"{what}: give prompts (a file), or organs, or some of text, point and box.")
        if self.organs:
            prompts = [Prompt(text=spoken_name(name), class_id=n) for n, name in read_organs(self.organs).items()]
        else:
            prompts = read_prompts(Path(self.source)) if self.source else self._short()
        prompts = _numbered(prompts, self.source or "prompts")
        warn_of_unknown(prompt.text for prompt in prompts if prompt.text)
        return prompts

    @property
    def class_names(self) -> dict[int, str]:
        """Class id to name."""
        return {prompt.class_id: prompt.name for prompt in self.prompts}

    def of(self, case: str, grid: Grid | None = None) -> list[Prompt]:  # noqa: ARG002 (of other books, it matters)
        """Return the prompts of a case, by class id.

        Args:
            case: its name.
            grid: that of its file, where it is known.
        """
        found = [prompt for name in dict.fromkeys(("", case)) for prompt in self._by_case.get(name, [])]
        return sorted(found, key=lambda prompt: prompt.class_id)

    @cached_property
    def _by_case(self) -> dict[str, list[Prompt]]:
        found: dict[str, list[Prompt]] = {}
        for prompt in self.prompts:
            found.setdefault(prompt.case, []).append(prompt)
        return found

    def prompted(self, cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the cases that have a prompt.

        Raises:
            InputError: prompts are for a case that is not there, no case has any, or two results would have one file.
        """
        names = [case["case"] for case in cases]
        if missing := sorted({prompt.case for prompt in self.prompts} - {"", *names}):
            near = difflib.get_close_matches(missing[0], names, 1) or names[:1]
            raise InputError(
                f"{self.source}: has prompts for the case {missing[0]!r}, which the input lacks; give the name of a "
                f"file without its ending, such as {', '.join(map(repr, near))}."
            )
        found = [case for case in cases if self.of(case["case"])]
        if not found:
            raise InputError(f"{self.source}: has no prompt for any case, such as {', '.join(names[:3])}; give some.")
        if left := [name for name in names if not self.of(name)]:
            logger.warning("%d cases have no prompt and are left out: %s", len(left), ", ".join(left[:5]))
        if not self.organs:  # with which by default no masks are written
            self._check_files(found, names)
        return found

    def _check_files(self, cases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        """Refuse names of prompts by which a mask would replace another one, or the map of a case."""
        parts = {prompt.name: prompt.file_part for prompt in self.prompts}
        known = {name.casefold(): f"the map of {name}" for name in names}
        for case in (case["case"] for case in cases):
            for prompt in self.of(case):
                file = f"{case}_{parts[prompt.name]}".casefold()
                if file in known:
                    raise InputError(
                        f"{self.source or 'prompts'}: the mask of the prompt {prompt.name!r} of {case} would have the "
                        f"same file as {known[file]}; give the prompt another name."
                    )
                known[file] = f"that of {prompt.name!r} of {case}"

    def _short(self) -> list[Prompt]:
        if (self.point or self.box) and len(self.texts) > 1:
            raise InputError(f"{len(self.texts)} texts with a point or a box: give prompts, a file that says of which.")
        shared = {"points": [self.point] if self.point else [], "box": self.box, "space": self.space}
        return [checked({"text": text, **shared}, "the command line") for text in self.texts or [""]]


def prompted_cases(book: PromptBook, cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return `PromptBook.prompted`, for configs."""
    return book.prompted(cases)


def _numbered(prompts: Sequence[Prompt], where: str) -> list[Prompt]:
    """Name prompts and number their classes; the same name has the same number in all cases."""
    named = [replace(p, name=p.name or p.text or f"prompt {n}") for n, p in enumerate(prompts, start=1)]
    ids: dict[str, int] = {p.name: p.class_id for p in named if p.class_id}
    taken = set(ids.values())
    free = (number for number in itertools.count(1) if number not in taken)
    for prompt in named:
        if prompt.name not in ids:
            ids[prompt.name] = next(free)
    if len(set(ids.values())) < len(ids) or any(p.class_id not in (0, ids[p.name]) for p in named):
        raise InputError(f"{where}: a class_id has two names, or a name two; give each name one of its own.")
    seen: set[tuple[str, str]] = set()
    for prompt in named:
        if (prompt.case, prompt.name) in seen or (prompt.case and ("", prompt.name) in seen):
            of = f" of {prompt.case}" if prompt.case else ""
            raise InputError(f"{where}: two prompts{of} are named {prompt.name!r}; join them, or give each a name.")
        seen.add((prompt.case, prompt.name))
    return [replace(prompt, class_id=ids[prompt.name]) for prompt in named]


def warn_of_unknown(texts: Iterable[str]) -> None:
    """Warn of texts that name no organ that is known here, with the nearest; any text may be used."""
    known = sorted({spoken_name(name) for name in ORGANS.values()} | {"kidney", "lung", "bladder", "adrenal gland"})
    for text in dict.fromkeys(text.lower() for text in texts):
        if text not in known and not organ_ids(text):
            near = difflib.get_close_matches(text, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            logger.warning("text %r is no organ that is known here, it is used as it is%s", text, hint)
