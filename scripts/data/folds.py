"""Cross-validation folds by patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scripts.common.errors import InputError, raise_all

Items = list[dict[str, Any]]


def assign_folds(patients: Iterable[str], *, folds: int = 5, seed: int = 0) -> dict[str, int]:
    """Split patients into folds of equal size, plus or minus one.

    Args:
        patients: names; repeated names count once.
        folds: number of folds.
        seed: seed of the shuffling; the order of the names does not matter.

    Returns:
        Patient to fold, 0..folds - 1.

    Raises:
        InputError: there are fewer than 2 folds, or fewer patients than folds.
    """
    names = sorted(set(patients))
    if not 2 <= folds <= len(names):
        raise InputError(f"folds is {folds} for {len(names)} patients with labels: give 2 or more, one patient each.")
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[index]: position % folds for position, index in enumerate(order)}


def hold_out_fold(sections: Mapping[str, Items], fold: int | None, source: object) -> None:
    """Hold out a fold: move its training cases to validation, in place.

    A datalist with a validation list of its own and no folds, or without training cases, is left as it is.

    Args:
        sections: lists of items, from which the key "fold" is removed.
        fold: the fold to hold out; None changes nothing else.
        source: datalist, named in the messages.

    Raises:
        InputError: a case has no fold, a patient is in two folds, `fold` does not exist, or there is a validation list
            besides the folds.
    """
    training, validation = sections["training"], sections["validation"]
    numbers = [item.pop("fold", None) for item in training]
    for item in [*validation, *sections["test"]]:
        item.pop("fold", None)
    if fold is None or not training or (validation and set(numbers) <= {None}):
        return
    fix = 'give each training case a "fold" and leave out the validation list'
    problems = [f"training[{i}]: fold is {n!r:.200}" for i, n in enumerate(numbers) if type(n) is not int]
    if validation:
        problems.append(f"validation: {len(validation)} cases beside the folds")
    raise_all(problems or _split_patients(training, numbers), source, fix)
    if type(fold) is not int or fold not in numbers:
        listed = ", ".join(map(str, sorted(set(numbers))))
        raise InputError(f"{source}: fold is {fold!r}: give one of {listed:.200}.")
    validation += [item for item, number in zip(training, numbers, strict=True) if number == fold]
    training[:] = [item for item, number in zip(training, numbers, strict=True) if number != fold]


def _split_patients(items: Items, numbers: list[int]) -> list[str]:
    """List the patients with cases in several folds."""
    folds: dict[str, set[int]] = {}
    for item, number in zip(items, numbers, strict=True):
        if "patient" in item:
            folds.setdefault(item["patient"], set()).add(number)
    return [f"patient {name}: in the folds {sorted(found)}" for name, found in folds.items() if len(found) > 1]
