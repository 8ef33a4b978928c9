"""Writing label maps: on the grid that they lie on, as integers, atomically."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from scripts.common.errors import InputError
from scripts.common.files import atomic_path
from scripts.common.label_maps import as_label_array, renumber
from scripts.common.names import safe_name, stem


class SaveLabelMapd(SaveImaged):
    """Write a label map as `<output_dir>/<case>_<postfix>.nii.gz`, uint8, with its own shape and affine.

    The case is named by `meta["case"]`, or else after the file that it was read from.

    A subclass of `SaveImaged`, because MONAI Label leaves those out and saves the result itself. The writing is our
    own: `monai.transforms.SaveImage` 1.6.1 drops axes of length 1, resamples every volume, even to its own grid, and
    reports any error, such as a full disk, as a missing writer library.

    Args:
        keys: keys of the label maps.
        output_dir: folder of the files; created if it is missing.
        postfix: word after the name of the case.
        renumber: class id to its value in the file; the data of the case keep the class ids.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        The label map: (1, X, Y, Z), a MetaTensor.

    Raises:
        InputError: a voxel is not a whole number from 0 to 255.

    >>> import tempfile, torch
    >>> label_map = MetaTensor(torch.ones(1, 2, 3, 4), affine=torch.eye(4), meta={"case": "patient1"})
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = SaveLabelMapd("pred", output_dir=folder)({"pred": label_map})
    >>> nib.load(folder / "patient1_seg.nii.gz").shape
    (2, 3, 4)
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
        super().__init__(keys, output_dir=output_dir, output_postfix=postfix, allow_missing_keys=allow_missing_keys)
        self.output_dir, self.postfix = Path(output_dir), postfix
        self.values = {int(class_id): int(value) for class_id, value in (renumber or {}).items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the label maps of a case."""
        for key in self.key_iterator(data):
            self.write(data[key])
        return dict(data)

    def write(self, label_map: MetaTensor) -> None:
        """Write one label map."""
        case = str(label_map.meta.get("case") or safe_name(stem(str(label_map.meta["filename_or_obj"]))))
        labels = as_label_array(renumber(label_map[0], self.values), name=case)
        low, high = labels.min(initial=0), labels.max(initial=0)
        if low < 0 or high > 255:
            raise InputError(f"{case}: holds class ids from {low} to {high}; label maps are saved with 0 to 255.")
        image = nib.Nifti1Image(labels.astype(np.uint8), np.asarray(label_map.affine, dtype=np.float64))
        image.header.set_xyzt_units("mm")
        image.set_sform(image.affine, code="scanner")
        image.set_qform(image.affine, code="scanner")
        with atomic_path(self.output_dir / f"{case}_{self.postfix}.nii.gz") as temporary:
            nib.save(image, temporary)
