"""Dictionary transforms of the label filter: read, measure and write label maps."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.common.names import stem
from scripts.common.organs import IDS_OF_NAMES
from scripts.io.nifti import StoredVolume, read_nifti
from scripts.io.writing import SaveLabelMapd
from scripts.solf.measuring import case_features
from scripts.solf.tables import IGNORE, read_label_table

logger = logging.getLogger(__name__)


class LoadLabelMapd(MapTransform):
    """Read label maps as they are stored: NIfTI, whole numbers from 0 to 254, on any grid.

    Args:
        keys: keys whose values are paths.
        label_names: JSON file of the maps' own ids to names, if they differ from those of `scripts.common.organs`: the
            organs' names or TotalSegmentator's. Labels without a counterpart become background.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        A file of (X, Y, Z) voxels becomes a MetaTensor (1, X, Y, Z), uint8.

    Raises:
        InputError: a file cannot be read whole, or holds other numbers. The message names the file and the fix.
    """

    def __init__(self, keys: KeysCollection, *, label_names: str | Path = "", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.new_ids = organ_ids(label_names) if label_names else None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the label maps of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            path = d[key]
            volume = read_nifti(path)
            labels = label_values(volume, path)
            labels = labels if self.new_ids is None else self.new_ids[labels]
            meta = {"filename_or_obj": str(path), "case": d.get("case", ""), "original_channel_dim": "no_channel"}
            d[key] = MetaTensor(torch.from_numpy(labels)[None], affine=volume.affine, meta=meta)
        return d


class LargestComponentsd(MapTransform):
    """Keep the largest 26-connected component of each label.

    Args:
        keys: label maps, (1, X, Y, Z).
        enabled: whether to do anything.
    """

    def __init__(self, keys: KeysCollection, *, enabled: bool | str = True) -> None:
        super().__init__(keys)
        self.enabled = parse_flag(enabled, "largest_component")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the label maps of a case."""
        d = dict(data)
        for key in self.key_iterator(d) if self.enabled else ():
            d[key] = d[key].clone()
            d[key][0] = torch.from_numpy(largest_components(d[key][0].numpy()))
        return d


class ShapeFeaturesd(MapTransform):
    """Measure the labels of a map.

    Args:
        keys: the label map, (1, X, Y, Z) with an affine.
        label_table: JSON file of the labels; "" for the 72 organs.
        features_key: key of the result, an (L, C) float64 tensor; see `scripts.solf.measuring.case_features`.

    Raises:
        InputError: the map cannot be measured. The message names its file.
    """

    def __init__(self, keys: KeysCollection, *, label_table: str | Path = "", features_key: str = "features") -> None:
        super().__init__(keys)
        self.organs, self.features_key = read_label_table(label_table), features_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the features of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            try:
                features = case_features(d[key][0].numpy(), d[key].affine.numpy(), self.organs)
            except InputError as error:
                raise InputError(f"{d[key].meta.get('filename_or_obj', 'label map')}: {error}") from error
            d[self.features_key] = torch.from_numpy(features)
        return d


class SaveCleanedd(SaveLabelMapd):
    """Write cleaned label maps as `<case>_cleaned.nii.gz`; remove the file of a dropped case, whose voxels are all 255.

    Args:
        keys: the cleaned label map, a MetaTensor (1, X, Y, Z).
        output_dir: folder of the files.
    """

    def __init__(self, keys: KeysCollection, *, output_dir: str | Path) -> None:
        super().__init__(keys, output_dir=output_dir, postfix="cleaned")

    def write(self, label_map: MetaTensor) -> None:
        """Write one label map, or remove that of an earlier run if the case is dropped."""
        if not (label_map == IGNORE).all():
            super().write(label_map)
            return
        case = label_map.meta.get("case") or stem(label_map.meta["filename_or_obj"])
        (self.output_dir / f"{case}_{self.postfix}.nii.gz").unlink(missing_ok=True)


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


def label_values(volume: StoredVolume, path: object) -> np.ndarray:
    """Return the labels of a volume as uint8.

    Args:
        volume: a label map as stored.
        path: named in the message.

    Raises:
        InputError: it holds other values than 0 to 254.
    """
    scaled = volume.slope != 1 or volume.inter != 0
    values = volume.stored * volume.slope + volume.inter if scaled else volume.stored
    low, high = values.min(), values.max()
    if not (low >= 0 and high < IGNORE):
        fix = "255 marks rejected voxels, give the raw labels" if high == IGNORE else "give a label map, not an image"
        raise InputError(f"{path}: holds values from {low:g} to {high:g}, labels are 0 to 254; {fix}.")
    labels = values.astype(np.uint8)
    if values.dtype.kind == "f" and not np.array_equal(labels, values):
        value = values[labels != values].flat[0]
        raise InputError(f"{path}: holds {value:g}, not a label; give a label map, resampled with nearest neighbour.")
    return labels


def organ_ids(path: str | Path) -> np.ndarray:
    """Return the (256,) table from a map's own ids to those of `scripts.common.organs`; see `LoadLabelMapd`."""
    names = read_label_table(path)
    known = {label: IDS_OF_NAMES[name] for label, name in names.items() if name in IDS_OF_NAMES}
    if not known:
        raise InputError(f"{path}: none of its {len(names)} names is an organ's or TotalSegmentator's; correct them.")
    if others := [name for name in names.values() if name not in IDS_OF_NAMES]:
        logger.warning("%s: %d of %d become background: %s", path, len(others), len(names), ", ".join(others))
    new_ids = np.zeros(256, dtype=np.uint8)
    new_ids[list(known)] = list(known.values())
    return new_ids
