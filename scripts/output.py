"""Writing label maps: on the input's grid, as integers, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import FolderLayoutBase, NibabelWriter
from monai.transforms import SaveImaged, Transform

from scripts.files import atomic_path
from scripts.names import stem


class LabelMapWriter(NibabelWriter):
    """NIfTI writer for one channel that keeps axes of length 1, and renames a file when it is whole."""

    def set_data_array(self, data_array: torch.Tensor, **_: Any) -> None:
        """Take the one channel of (1, X, Y, Z)."""
        self.data_obj = data_array[0].numpy()

    def write(self, filename: str | os.PathLike, verbose: bool = False, **options: Any) -> None:
        """Write to `filename`; see `monai.data.NibabelWriter`."""
        with atomic_path(Path(filename)) as temporary:
            super().write(str(temporary), verbose=verbose, **options)


class CaseLayout(FolderLayoutBase):
    """File names `<output_dir>/<case>_<postfix>.nii.gz`.

    Args:
        output_dir: folder, made where it is missing.
        postfix: word behind the case's name.
    """

    def __init__(self, output_dir: str | Path, postfix: str) -> None:
        self.output_dir, self.postfix = Path(output_dir), postfix

    def filename(self, *, subject: str, **_: Any) -> Path:
        """Return the path for a case and make its folder."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        return self.output_dir / f"{subject}_{self.postfix}.nii.gz"


def case_formatter(meta: Mapping[str, Any], _: Transform) -> dict[str, str]:
    """Name an output by the case, or by the file it came from where a program gave no case name."""
    return {"subject": str(meta.get("case") or stem(str(meta["filename_or_obj"])))}


class SaveLabelMapd(SaveImaged):
    """Write a label map as compressed NIfTI, uint8, with the affine and shape it has.

    Args:
        keys: key of the label map, (1, X, Y, Z).
        output_dir: folder for the files.
        postfix: word behind the case's name.
        renumber: class id to the value that stands for it in the file; what goes on to the handlers stays as it is.
        allow_missing_keys: skip keys that the case lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        output_dir: str | Path,
        postfix: str = "seg",
        renumber: Mapping[int | str, int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys,
            output_dtype=np.uint8,
            resample=False,
            print_log=False,
            writer=LabelMapWriter,
            output_ext=".nii.gz",
            output_name_formatter=case_formatter,
            folder_layout=CaseLayout(output_dir, postfix),
            allow_missing_keys=allow_missing_keys,
        )
        self.renumber = {int(class_id): int(value) for class_id, value in (renumber or {}).items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        written = dict(data)
        for key in self.key_iterator(written):
            written[key] = renumbered(data[key], self.renumber)
        super().__call__(written)
        return dict(data)


def renumbered(label: torch.Tensor, values: Mapping[int, int]) -> torch.Tensor:
    """Exchange class ids of a label map for other values, leaving those that are not named.

    Args:
        label: class ids, any shape.
        values: class id to value; all are exchanged at once.

    Returns:
        A new tensor if an id becomes another, else `label`.
    """
    changes = {class_id: value for class_id, value in values.items() if class_id != value}
    changed = label.clone() if changes else label
    for class_id, value in changes.items():
        changed[label == class_id] = value
    return changed
