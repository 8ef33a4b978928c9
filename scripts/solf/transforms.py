"""Dictionary transforms of the label filter: read, measure and write label maps."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from zlib_ng import gzip_ng

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.common.label_maps import MAX_CLASS_ID
from scripts.common.names import is_nifti, printable
from scripts.io.dicom_seg import is_dicom_seg, read_dicom_seg
from scripts.io.nifti import StoredVolume, read_nifti
from scripts.io.organ_folder import read_organ_folder
from scripts.io.writing import SaveLabelMapd
from scripts.solf.lookup import count_labels, replace_labels
from scripts.solf.measuring import features_and_contacts
from scripts.solf.renaming import Renaming, source_counts
from scripts.solf.tables import IGNORE, read_label_table

_MAX_UINT8 = np.iinfo(np.uint8).max


class LoadLabelMapd(MapTransform):
    """Read label maps as they are stored, on any grid: NIfTI, a folder with a mask per organ, or DICOM SEG.

    Args:
        keys: keys whose values are paths.
        label_table: JSON file of the labels, by whose names organs of folders and DICOM SEG are known; "" for the 72
            organs.
        label_names: JSON file of the maps' own ids and names, if the ids are not those of `label_table`. Labels whose
            name is not in `label_table`, and ids that the file lacks, become `ignore_id`.
        ignore_id: value of ignored voxels; those of the file stay ignored.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        A file of (X, Y, Z) or (X, Y, Z, 1) voxels becomes a MetaTensor (1, X, Y, Z), uint8, or uint16 if a label or
        `ignore_id` is above 255.

    Raises:
        InputError: a file cannot be read whole, or holds other numbers than labels. The message names the file and the
            fix.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        label_table: str | Path = "",
        label_names: str | Path = "",
        ignore_id: int = IGNORE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.renaming = Renaming(label_table=label_table, label_names=label_names, ignore_id=ignore_id)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the label maps of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            volume, sources = read_labels(d[key], self.renaming)
            meta = {"filename_or_obj": str(d[key]), "case": d.get("case", ""), "original_channel_dim": "no_channel"}
            meta["nifti_header"] = volume.header.binaryblock if volume.header else b""
            meta["sources"] = sources
            d[key] = MetaTensor(torch.from_numpy(volume.stored)[None], affine=volume.affine, meta=meta)
        return d


class LargestComponentsd(MapTransform):
    """Keep the largest 26-connected component of each label.

    Args:
        keys: label maps, (1, X, Y, Z).
        enabled: whether to do anything.
        ignore_id: value of ignored voxels, which all stay.
    """

    def __init__(self, keys: KeysCollection, *, enabled: bool | str = True, ignore_id: int = IGNORE) -> None:
        super().__init__(keys)
        self.enabled, self.ignore_id = parse_flag(enabled, "largest_component"), ignore_id

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the label maps of a case."""
        d = dict(data)
        for key in self.key_iterator(d) if self.enabled else ():
            label = d[key].as_tensor()[0].numpy()
            kept = np.where(label == self.ignore_id, label, largest_components(label))
            d[key] = MetaTensor(torch.from_numpy(kept)[None], meta=d[key].meta)
        return d


class ShapeFeaturesd(MapTransform):
    """Measure the labels of a map.

    Args:
        keys: the label map, (1, X, Y, Z) with an affine.
        label_table: JSON file of the labels; "" for the 72 organs.
        ignore_id: value of ignored voxels, which are not measured.
        features_key: key of the result, an (L, C) float64 tensor; see `scripts.solf.measuring.case_features`.

    Raises:
        InputError: the map cannot be measured. The message names its file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        label_table: str | Path = "",
        ignore_id: int = IGNORE,
        features_key: str = "features",
    ) -> None:
        super().__init__(keys)
        self.organs, self.ignore_id = read_label_table(label_table, ignore_id=ignore_id), ignore_id
        self.features_key = features_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the features of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            label = d[key].as_tensor()[0].numpy()
            try:
                found = features_and_contacts(label, d[key].affine.numpy(), self.organs, ignore_id=self.ignore_id)
            except InputError as error:
                path = d[key].meta.get("filename_or_obj", "label map")
                raise InputError(f"{printable(path)}: {error}") from error
            d[self.features_key], d[key].meta["contacts"] = torch.from_numpy(found[0]), found[1]
        return d


class SaveCleanedd(SaveLabelMapd):
    """Write cleaned label maps as `<case>_cleaned.nii.gz`; remove that of a dropped case, ignored as a whole.

    zlib-ng compresses as well as gzip's usual level 6 in a third of its time.

    Args:
        keys: the cleaned label map, a MetaTensor (1, X, Y, Z).
        output_dir: folder of the files.
        ignore_id: value of ignored voxels.
    """

    gzip_file, gzip_level = gzip_ng.GzipNGFile, 5

    def __init__(self, keys: KeysCollection, *, output_dir: str | Path, ignore_id: int = IGNORE) -> None:
        super().__init__(keys, output_dir=output_dir, postfix="cleaned")
        self.ignore_id = ignore_id

    def write(self, label_map: MetaTensor) -> None:
        """Write one label map, or remove that of an earlier run if the case is dropped."""
        labels = label_map.as_tensor().numpy()
        if labels.min() == labels.max() == self.ignore_id:
            self.path_of(self.case_of(label_map)).unlink(missing_ok=True)
        else:
            super().write(label_map)


def largest_components(label: np.ndarray) -> np.ndarray:
    """Return a label map with the largest 26-connected component of each label; among equal ones the first.

    Args:
        label: (I, J, K), of any unsigned type; not changed.
    """
    components, count = cc3d.connected_components(label, connectivity=26, return_N=True)
    sizes = np.bincount(components.ravel(order="K"), minlength=count + 1)
    owner = np.zeros(count + 1, dtype=label.dtype)
    owner[components] = label
    best = {value: np.flatnonzero(owner == value)[np.argmax(sizes[owner == value])] for value in np.unique(owner[1:])}
    kept = np.zeros(count + 1, dtype=label.dtype)
    kept[list(best.values())] = list(best)
    return kept[components]


def read_labels(path: str | Path, renaming: Renaming) -> tuple[StoredVolume, str]:
    """Read a label map, with the ids of the label table.

    Args:
        path: a NIfTI file, a folder with a mask per organ, or a DICOM SEG file.
        renaming: the label table, and how the file's labels become its ids.

    Returns:
        The label map, (X, Y, Z) uint8 or uint16, and what the file held; see `scripts.solf.renaming.source_counts`.

    Raises:
        InputError: see `LoadLabelMapd`.
    """
    where, ignore_id = Path(path), renaming.ignore_id
    if not is_nifti(where) and (where.is_dir() or is_dicom_seg(where)):
        if where.is_dir():
            volume, found = read_organ_folder(where, renaming.ids_of, ignore_id=ignore_id, open_gzip=gzip_ng.open)
        else:
            volume, found = read_dicom_seg(where, renaming.ids_of, ignore_id=ignore_id)
        return volume, source_counts({}, found.voxels, overlap=found.overlap)
    volume = read_nifti(path, open_gzip=gzip_ng.open, drop_axes=True)
    labels = label_values(volume, path, ignore_id=ignore_id)
    counts: dict[int, int] = {}
    if renaming.values is not None:
        counts = count_labels(labels)
        values = renaming.values.astype(np.uint8) if renaming.values.max() <= _MAX_UINT8 else renaming.values
        labels = replace_labels(labels, values[: np.iinfo(labels.dtype).max + 1])
    elif labels.max() >= ignore_id and (ignored := int(np.count_nonzero(labels == ignore_id))):
        counts = {ignore_id: ignored}
    return replace(volume, stored=labels, slope=1.0, inter=0.0), source_counts(counts, {})


def label_values(volume: StoredVolume, path: object, *, ignore_id: int = IGNORE) -> np.ndarray:
    """Return the labels of a volume as uint8, or as uint16 if one or `ignore_id` is above 255.

    Args:
        volume: a label map as stored.
        path: named in the message.
        ignore_id: value of ignored voxels.

    Raises:
        InputError: it holds other values than 0 to 65535.
    """
    scaled = volume.slope != 1 or volume.inter != 0
    values = volume.stored * volume.slope + volume.inter if scaled else volume.stored
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= MAX_CLASS_ID):
        raise InputError(
            f"{printable(path)}: holds values from {low:g} to {high:g}, labels are 0 to {MAX_CLASS_ID}; give a label "
            "map, not an image."
        )
    dtype = np.uint8 if max(high, ignore_id) <= _MAX_UINT8 else np.uint16
    labels = values.astype(dtype, copy=False)
    if values.dtype.kind == "f" and not np.array_equal(labels, values):
        value = values[labels != values].flat[0]
        fix = "give a label map, resampled with nearest neighbour"
        raise InputError(f"{printable(path)}: holds {value:g}, not a label; {fix}.")
    return labels
