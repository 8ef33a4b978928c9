"""The classes that a run restores, measures and saves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.organs import foreground_classes


def chosen_classes(channel_def: Mapping[str, str], roi_subset: Sequence[str] | None = None) -> dict[int, str]:
    """Return the foreground classes that were chosen by name.

    Args:
        channel_def: channel index, as a string, to class name; see `scripts.common.organs.foreground_classes`.
        roi_subset: names of classes; None chooses all.

    Returns:
        Class id to name, by ascending id.

    Raises:
        InputError: no name is given, or one is not of a class; the message names the nearest.

    >>> chosen_classes({"0": "background", "1": "spleen", "2": "liver"}, ["liver"])
    {2: 'liver'}
    """
    classes = foreground_classes(channel_def)
    if roi_subset is None:
        return classes
    if isinstance(roi_subset, str) or not roi_subset:
        known = ", ".join(classes.values())
        raise InputError(f"roi_subset is {roi_subset!r}: give a list of classes, some of {known}.")
    for name in roi_subset:
        if name not in classes.values():
            near = get_close_matches(str(name), classes.values(), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the classes are {', '.join(classes.values())}."
            raise InputError(f"roi_subset names {name!r}, which is not a class; {hint}")
    return {class_id: name for class_id, name in classes.items() if name in roi_subset}


def chosen_ids(roi_subset: Sequence[str] | None, metadata: str | Path) -> list[int] | None:
    """Return the ids of the chosen classes, or None for all, for `scripts.inference.restore.RestoreLabelMapd`.

    The metadata are read from their file, as MONAI Label and Deploy parse the postprocessing without them.

    Args:
        roi_subset: names of classes; None chooses all.
        metadata: the bundle's `metadata.json`; not read if `roi_subset` is None.

    Raises:
        InputError: see `chosen_classes`.
    """
    if roi_subset is None:
        return None
    outputs = json.loads(Path(metadata).read_text(encoding="utf-8"))["network_data_format"]["outputs"]
    return list(chosen_classes(outputs["pred"]["channel_def"], roi_subset))
