"""A network applied to the classes of another data set: which of its classes make up which of theirs."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.common.errors import InputError
from scripts.common.label_maps import MAX_CLASS_ID
from scripts.common.names import printable
from scripts.common.organs import foreground_classes, organ_ids, organ_name

logger = logging.getLogger(__name__)


class Matching:
    """Which classes of a network make up the classes of another data set, by name.

    Classes of the data set that the network's cannot tell apart, such as colon and small bowel, count as one, which has
    the id of the first. A class without a counterpart is left out: nothing is predicted as it, and its voxels in labels
    count as background.

    Args:
        channel_def: the network's classes.
        target: `btcv`, `amos` or `totalsegmentator` (CT, version 2), a JSON file of id to name such as
            `{"1": "spleen"}`, or its content.

    Attributes:
        num_classes: number of values that the labels may hold, including the background.
        scored: class id to name of the classes that have a counterpart.
        missing: names of those that have none.

    Raises:
        InputError: the target is unknown or malformed, or none of its classes has a counterpart.

    >>> matching = Matching({"0": "background", "1": "kidney_left", "2": "intestine"},
    ...                     {"1": "colon", "2": "left kidney", "3": "brain", "4": "small_bowel"})
    >>> matching.scored, matching.missing
    ({1: 'intestine', 2: 'left kidney'}, ['brain'])
    """

    def __init__(self, channel_def: Mapping[str, str], target: str | Mapping[str, str]) -> None:
        classes = target_classes(target)
        own = foreground_classes(channel_def)
        parts = {label: _counterparts(name, own) for label, name in classes.items()}
        self.missing = [name for label, name in classes.items() if not parts[label]]
        self.num_classes = max(classes) + 1
        groups: dict[tuple[int, ...], list[int]] = {}
        for label in classes:
            groups.setdefault(parts[label], []).append(label)
        groups.pop((), None)
        self.scored = {labels[0]: _joint_name(ids, labels, own, classes) for ids, labels in groups.items()}
        self.of_pred = {part: labels[0] for ids, labels in groups.items() for part in ids}
        self.of_label = {label: labels[0] for labels in groups.values() for label in labels}
        shared = sorted({own[part] for part in own if sum(part in ids for ids in groups) > 1})
        if shared:
            raise InputError(f"target: {', '.join(shared)} is part of several of its classes; leave out all but one.")
        if not groups:
            known = ", ".join(list(own.values())[:5])
            raise InputError(f"target: none of its {len(classes)} classes is one of the network's, such as {known}.")
        logger.info("%d of %d classes have a counterpart", len(self.of_label), len(classes))
        if self.missing:
            logger.warning("left out, for they have no counterpart: %s", ", ".join(self.missing))
        for labels in (labels for labels in groups.values() if len(labels) > 1):
            names = ", ".join(classes[label] for label in labels)
            logger.warning(
                "count as one, %s, for the network does not tell them apart: %s", self.scored[labels[0]], names
            )


class MapToTargetd(MapTransform):
    """Renumber predictions and labels to the classes of `Matching` that are scored; all others become background.

    Args:
        keys: keys of the label maps, of which a case may lack some.
        matching: of the classes.
        label_key: the one of `keys` that holds the label; the others hold classes of the network.
        ignored_label: value of voxels of the label that stay as they are.

    Shape:
        (1, X, Y, Z), unchanged.
    """

    def __init__(
        self, keys: KeysCollection, *, matching: Matching, label_key: str = "label", ignored_label: int = 255
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.label_key = label_key
        self.of_label = {**matching.of_label, ignored_label: ignored_label}
        self.of_pred = matching.of_pred

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Renumber the label maps of a case; a label that is still a path is left to whoever reads it."""
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], torch.Tensor):
                d[key] = _mapped(d[key], self.of_label if key == self.label_key else self.of_pred)
        return d


def target_classes(target: str | Mapping[str, str]) -> dict[int, str]:
    """Return class id to name of a target of `Matching`, without the background."""
    if isinstance(target, Mapping):
        return foreground_classes({key: name for key, name in target.items() if str(key) != "0"})
    known = _known_targets()
    if target in known:
        return dict(enumerate(known[target], start=1))
    path = Path(target)
    if path.suffix != ".json":
        near = get_close_matches(target, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"target is {printable(target)!r}: give {', '.join(known)} or a .json file of names{hint}")
    return read_names(path)


def read_names(path: Path) -> dict[int, str]:
    """Read a JSON file of class id to name, such as `{"1": "spleen"}`; a background 0 is left out.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(names, dict) or not names.keys() - {"0"}:
            raise TypeError("no object with an id")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f'{printable(path)}: holds no names ({error}); give JSON such as {{"1": "spleen"}}.'
        ) from error
    try:
        return foreground_classes({key: name for key, name in names.items() if key != "0"})
    except InputError as error:
        raise InputError(f"{printable(path)}: {error}") from error


@cache
def _known_targets() -> dict[str, Sequence[str]]:
    """Return data set to the names of its classes, from id 1."""
    return json.loads((Path(__file__).parent / "assets" / "targets.json").read_text(encoding="utf-8"))


def _counterparts(name: str, own: Mapping[int, str]) -> tuple[int, ...]:
    """Return the classes of a network that a class of another data set is made of; none unless all are there."""
    ids_of = {organ_name(other): label for label, other in own.items()}
    if organ_name(name) in ids_of:
        return (ids_of[organ_name(name)],)
    by_organ = {organ_ids(other): label for label, other in own.items()}
    parts = [by_organ.get((organ,)) for organ in organ_ids(name)]
    return () if None in parts else tuple(sorted(parts))


def _joint_name(ids: Sequence[int], labels: Sequence[int], own: Mapping[int, str], classes: Mapping[int, str]) -> str:
    """Return the data set's name of a class, or the network's of several that count as one."""
    return classes[labels[0]] if len(labels) == 1 else " + ".join(own[part] for part in ids)


def _mapped(labels: torch.Tensor, values: Mapping[int, int]) -> torch.Tensor:
    """Replace class ids; those without a value become 0."""
    table = np.zeros(MAX_CLASS_ID + 1, dtype=np.uint16)
    table[list(values)] = list(values.values())
    mapped = labels.clone()
    mapped[...] = torch.from_numpy(table[labels.cpu().numpy().astype(np.uint16)].astype(np.int32))
    return mapped
