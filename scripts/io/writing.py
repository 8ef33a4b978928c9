"""Writing label maps: on the grid that they lie on, as integers, atomically."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from scripts.common.errors import InputError
from scripts.common.files import atomic_path
from scripts.common.label_maps import MAX_CLASS_ID, as_label_array, renumber
from scripts.common.names import safe_name, stem


class SaveLabelMapd(SaveImaged):
    """Write a label map as `<output_dir>/<case>_<postfix>.nii.gz`, with its own shape and affine.

    The case is named by `meta["case"]`, or else after the file that it was read from. With `meta["nifti_header"]`, the
    binary header of a file on the same grid, the file gets this header and, if it is an integer that can hold the class
    ids, its type; else the class ids are uint8, or uint16 if one is above 255.

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
        InputError: a voxel is not a whole number from 0 to 65535.

    >>> import tempfile, torch
    >>> label_map = MetaTensor(torch.ones(1, 2, 3, 4), affine=torch.eye(4), meta={"case": "patient1"})
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = SaveLabelMapd("pred", output_dir=folder)({"pred": label_map})
    >>> nib.load(folder / "patient1_seg.nii.gz").shape
    (2, 3, 4)
    """

    gzip_file, gzip_level = gzip.GzipFile, 1

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
        """Write the label maps of a case; not those without a name, of volumes in memory."""
        for key in self.key_iterator(data):
            if data[key].meta.get("case") or data[key].meta.get("filename_or_obj"):
                self.write(data[key])
        return dict(data)

    def write(self, label_map: MetaTensor) -> None:
        """Write one label map."""
        case = self.case_of(label_map)
        labels = as_label_array(renumber(label_map[0], self.values), name=case)
        low, high = labels.min(initial=0), labels.max(initial=0)
        if low < 0 or high > MAX_CLASS_ID:
            raise InputError(f"{case}: holds class ids from {low} to {high}; label maps are saved with 0 to 65535.")
        header = header_for(labels, np.asarray(label_map.affine, dtype=np.float64), label_map.meta.get("nifti_header"))
        write_label_map(labels, header, self.path_of(case), gzip_file=self.gzip_file, level=self.gzip_level)

    def case_of(self, label_map: MetaTensor) -> str:
        """Return the name of a label map's case."""
        return str(label_map.meta.get("case") or safe_name(stem(str(label_map.meta["filename_or_obj"]))))

    def path_of(self, case: str) -> Path:
        """Return the path of the file of a case."""
        return self.output_dir / f"{case}_{self.postfix}.nii.gz"


def write_label_map(
    labels: np.ndarray,
    header: nib.Nifti1Header,
    path: Path,
    *,
    gzip_file: Callable[..., BinaryIO] = gzip.GzipFile,
    level: int = 1,
) -> None:
    """Write a label map as .nii.gz, atomically; the same labels give the same bytes.

    Args:
        labels: class ids, (X, Y, Z).
        header: see `header_for`.
        path: of the file.
        gzip_file: packs it, with the arguments of `gzip.GzipFile`.
        level: of the compression.
    """
    voxels = np.ascontiguousarray(labels.T, dtype=header.get_data_dtype())
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        packed = gzip_file(filename="", mode="wb", compresslevel=level, fileobj=file, mtime=0)
        with packed:
            header.write_to(packed)
            packed.write(voxels.data.cast("B"))


def header_for(labels: np.ndarray, affine: np.ndarray, given: bytes | None = None) -> nib.Nifti1Header:
    """Return the header of a label map's file.

    Args:
        labels: class ids from 0 to 65535.
        affine: voxel indices to mm, (4, 4).
        given: the binary header of a file; used if it is of the same grid.

    Shape:
        labels: (X, Y, Z).
    """
    high = labels.max(initial=0)
    dtype = np.dtype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)
    header = _header_of(given, labels.shape, affine) if given else None
    if header is None:
        header = nib.Nifti1Image(np.broadcast_to(np.uint8(0), labels.shape), affine).header
        header.set_xyzt_units("mm")
        header.set_sform(affine, code="scanner")
        header.set_qform(affine, code="scanner")
    elif (own := header.get_data_dtype()).kind in "iu" and high <= np.iinfo(own).max:
        dtype = own
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset  # without extensions
    return header


def _header_of(given: bytes, shape: tuple[int, ...], affine: np.ndarray) -> nib.Nifti1Header | None:
    """Return a binary header as little-endian, or None if it is of another grid."""
    kind = nib.Nifti1Header if len(given) == nib.Nifti1Header.sizeof_hdr else nib.Nifti2Header
    header = kind(given).as_byteswapped("<")
    same = header.get_data_shape()[:3] == shape and np.allclose(header.get_best_affine(), affine, atol=1e-4)
    return header if same else None
