"""The transform that reads volumes, NIfTI or DICOM."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.common.grids import GridArray, scanned_slices
from scripts.common.names import printable
from scripts.io.dicom import read_dicom_series
from scripts.io.nifti import StoredVolume, check_intensities, read_nifti


class LoadVolumed(MapTransform):
    """Read 3-D volumes, channel first, and refuse files that would fail later.

    A folder is read as a DICOM series, a file as NIfTI. `scripts.data.case_checks.check_cases` refuses the same NIfTI
    files with the same messages. A volume that is in memory already stays, such as that of the MONAI Deploy App SDK,
    which leaves out transforms of MONAI's names only.

    Args:
        keys: keys of the paths.
        image_keys: those of `keys` that hold an image, which must not be constant or hold NaN; the others are label
            maps, which may be empty.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        A file of (X, Y, Z) voxels becomes a MetaTensor (1, X, Y, Z), float32; so does a MetaTensor (X, Y, Z).

    Raises:
        InputError: `read_nifti` or `read_dicom_series` refuses the file, or the image holds NaN, infinity or a single
            value. The message names the file and the fix.

    >>> import nibabel, numpy, tempfile
    >>> path = tempfile.mkdtemp() + "/ct.nii.gz"
    >>> nibabel.save(nibabel.Nifti1Image(numpy.arange(24.0).reshape(2, 3, 4), numpy.eye(4)), path)
    >>> LoadVolumed("image")({"image": path})["image"].shape
    torch.Size([1, 2, 3, 4])
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        image_keys: Sequence[str] = ("image",),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_keys = set(image_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the volumes of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.read(d[key], is_image=key in self.image_keys)
            if "case" in d:
                d[key].meta["case"] = d["case"]
        return d

    def read(self, path: str | Path | MetaTensor, *, is_image: bool) -> MetaTensor:
        """Read one volume.

        Args:
            path: NIfTI file or DICOM folder, or a volume in memory.
            is_image: whether to refuse a constant volume, NaN and infinity.
        """
        if isinstance(path, MetaTensor):
            return (path[None] if path.ndim == 3 else path).float()
        volume = self.read_file(path, is_image=is_image)
        if is_image:
            check_intensities(volume, printable(path))
        values = volume.values()
        tensor = as_tensor(volume, torch.from_numpy(values)[None], path)
        if is_image:
            tensor.meta["scanned_slices"] = scanned_slices(GridArray(values, volume.affine))
        return tensor

    def read_file(self, path: str | Path, *, is_image: bool) -> StoredVolume:  # noqa: ARG002 (of other files, it matters)
        """Read a file, or a folder as a DICOM series; see `read`."""
        return read_volume(path)


def as_tensor(volume: StoredVolume, values: torch.Tensor, path: str | Path) -> MetaTensor:
    """Return the intensities of a volume, (C, X, Y, Z), with the metadata that MONAI's transforms need."""
    affine = torch.from_numpy(volume.affine)
    meta = {
        "filename_or_obj": str(path),
        "original_affine": affine.clone(),
        "original_channel_dim": "no_channel",
        "space": "RAS",
        "spatial_shape": volume.grid.shape,
    }
    return MetaTensor(values, affine=affine, meta=meta)


def read_volume(path: str | Path, *, with_channels: bool = False) -> StoredVolume:
    """Read a NIfTI file, or a folder as a DICOM series.

    Args:
        path: of the file or folder.
        with_channels: see `read_nifti`.

    Raises:
        InputError: see `read_nifti` and `read_dicom_series`.
    """
    is_folder = os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises an error where access is denied)
    return read_dicom_series(Path(path)) if is_folder else read_nifti(path, with_channels=with_channels)
