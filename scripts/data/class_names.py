"""Names of the classes of a data set."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.names import printable
from scripts.common.organs import foreground_classes


def read_class_names(source: Path) -> dict[int, str]:
    """Read names of classes: `labels` of a datalist, or `labels.json` of a folder; none if there are none.

    Args:
        source: a datalist (`.json`), or a folder.

    Raises:
        InputError: they are not ids and names.
    """
    file = source if source.suffix == ".json" else source / "labels.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        named = content.get("labels", {}) if source.suffix == ".json" else content
        return {int(class_id): str(name) for class_id, name in named.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f'{printable(file)}: give the names of classes as {{"1": "spleen"}} ({error}).') from error


def dataset_classes(dataset_dir: str | Path, datalist_file: str | Path) -> dict[int, str]:
    """Return the names of the classes that a data set's datalist has to give, without the background.

    Raises:
        InputError: it gives none, or see `read_class_names` and `scripts.common.organs.foreground_classes`.
    """
    file = Path(dataset_dir) / datalist_file
    names = {class_id: name for class_id, name in read_class_names(file).items() if class_id}
    if not names:
        raise InputError(f'{printable(file)}: add the names of the classes, "labels": {{"1": "spleen", ...}}.')
    return foreground_classes(names)
