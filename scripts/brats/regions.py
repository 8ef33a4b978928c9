"""Overlapping tumour regions (TC, WT, ET) and the label maps that hold them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.common.errors import InputError
from scripts.common.label_maps import as_label_array, count_voxels, renumber

Regions = Mapping[str, Sequence[int]]
"""Region to the class ids that make it up, in the order of the network's channels."""

BRATS_REGIONS: Regions = {"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,)}
ENHANCING, OLDER_ENHANCING = 3, 4
LABEL_SETS = ((0, 1, 2, 3), (0, 1, 2, 4))
"""Values of BraTS 2023 (1 necrotic core, 2 edema, 3 enhancing tumour) and of the years before (4 enhancing)."""

_KINDS = {
    "2023": "the numbering of BraTS 2023: 1 necrotic core, 2 edema, 3 enhancing",
    "older": "the numbering before BraTS 2023: 1 necrotic core, 2 edema, 4 enhancing, which is read as 3",
    "either": "neither 3 nor 4, so they have no enhancing tumour in any numbering",
}
_logged_kinds: set[str] = set()  # not in the transform: its state is part of the fingerprint of prepared cases
logger = logging.getLogger(__name__)


def numbering(values: Sequence[int], *, name: str) -> str:
    """Return which numbering a label map uses.

    Args:
        values: the distinct class ids that it holds.
        name: named in the messages.

    Returns:
        "2023" if it holds 3, "older" if it holds 4, "either" if it holds neither.

    Raises:
        InputError: it holds both, or values outside both numberings.

    >>> numbering([0, 1, 2, 4], name="seg.nii.gz")
    'older'
    """
    found = {int(value) for value in values}
    if unknown := sorted(found.difference(*LABEL_SETS)):
        listed = ", ".join(map(str, unknown[:8]))
        raise InputError(f"{name}: holds the label values {listed}; BraTS has 1, 2, 3 (2023) or 1, 2, 4 (older).")
    if {ENHANCING, OLDER_ENHANCING} <= found:
        raise InputError(f"{name}: holds both 3 and 4, enhancing tumour in 2023 and in the years before: keep one.")
    return "2023" if ENHANCING in found else "older" if OLDER_ENHANCING in found else "either"


def written_numbering(enhancing_label: int) -> dict[int, int]:
    """Return the values in a written label map that differ from BraTS 2023, for `scripts.io.writing.SaveLabelMapd`.

    Args:
        enhancing_label: value of enhancing tumour: 3, or 4 as in the years before.

    Raises:
        InputError: any other value, which would be that of another class or of none.

    >>> written_numbering(4)
    {3: 4}
    """
    if type(enhancing_label) is not int or enhancing_label not in (ENHANCING, OLDER_ENHANCING):
        raise InputError(f"enhancing_label is {enhancing_label!r}: give 3 (BraTS 2023) or 4 (the years before).")
    return {ENHANCING: enhancing_label}


def nesting_order(regions: Regions) -> list[tuple[int, int]]:
    """Order nested regions from the outermost to the innermost, each with the class id that it alone adds.

    Args:
        regions: such as `BRATS_REGIONS`.

    Returns:
        Pairs of channel and class id. For BraTS, WT is painted as 2, then TC over it as 1, then ET as 3.

    Raises:
        InputError: the regions are not nested, or one does not add exactly one class to the next inner one.
    """
    outermost_first = sorted(enumerate(regions.values()), key=lambda item: -len(set(item[1])))
    inner_sets = [set(ids) for _, ids in outermost_first[1:]] + [set()]
    order = []
    for (channel, ids), inner in zip(outermost_first, inner_sets, strict=True):
        own = set(ids) - inner
        if len(own) != 1 or not inner <= set(ids):
            listed = {name: list(ids) for name, ids in regions.items()}
            raise InputError(f"regions is {listed}: give nested regions, each with one class id more than the next.")
        order.append((channel, own.pop()))
    return order


def paint_regions(mask_of: Callable[[int], torch.Tensor], regions: Regions) -> torch.Tensor:
    """Paint nested regions into one label map, the inner over the outer.

    `split_regions` gives nested regions back. If they are not nested, the inner one wins: a voxel of ET that is
    missing from TC or WT then belongs to these too. Each region read back is thus the union of the region painted
    and all regions within it.

    Args:
        mask_of: returns the mask of a channel; called for one channel at a time.
        regions: such as `BRATS_REGIONS`.

    Shape:
        Masks of any shape, bool, become class ids of that shape, uint8.
    """
    label = None
    for channel, class_id in nesting_order(regions):
        mask = mask_of(channel)
        label = torch.zeros(mask.shape, dtype=torch.uint8, device=mask.device) if label is None else label
        label[mask] = class_id
    return label


def nested_label_map(
    logits_of: Callable[[int], torch.Tensor], n: int, *, regions: Regions = BRATS_REGIONS
) -> torch.Tensor:
    """Turn the logits of nested regions into one label map, for `scripts.inference.restore.RestoreLabelMapd`.

    A voxel belongs to a region if its logit is above 0.

    Args:
        logits_of: returns the logits of one channel.
        n: number of channels.
        regions: their class ids, in the order of the channels.

    Raises:
        InputError: there are not as many channels as regions.

    >>> logits = torch.tensor([[-1, 1, 1], [1, 1, 1], [-1, -1, 1]])  # TC, WT and ET of three voxels
    >>> nested_label_map(lambda channel: logits[channel], 3)
    tensor([2, 1, 3], dtype=torch.uint8)
    """
    if n != len(regions):
        raise InputError(f"{n} channels for the regions {list(regions)}: give as many regions as channels.")
    return paint_regions(lambda channel: logits_of(channel) > 0, regions)


def split_regions(label: torch.Tensor, regions: Regions = BRATS_REGIONS) -> torch.Tensor:
    """Convert a label map to region channels.

    Args:
        label: class ids.
        regions: their class ids, in the order of the channels.

    Shape:
        (1, ...) becomes (C, ...), float32 as losses and metrics take it; a MetaTensor keeps its metadata.
    """
    masks = [torch.stack([label == class_id for class_id in ids]).any(dim=0) for ids in regions.values()]
    return torch.cat(masks).to(torch.float32)


class BratsLabelsd(MapTransform):
    """Convert label maps of any year to the numbering of BraTS 2023, and log the first of each numbering.

    Args:
        keys: keys of the label maps.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (1, X, Y, Z), unchanged, as are type and metadata.

    Raises:
        InputError: see `numbering`; the message names the file and the values.

    >>> BratsLabelsd("label")({"label": torch.tensor([[[[0, 1, 2, 4]]]])})["label"]
    tensor([[[[0, 1, 2, 3]]]])
    """

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the label maps of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.convert(d[key])
        return d

    def convert(self, label: torch.Tensor) -> torch.Tensor:
        """Convert one label map; returns the same tensor if it has the numbering already."""
        name = str(getattr(label, "meta", {}).get("filename_or_obj", "label"))
        ids = as_label_array(label[0], name=name)
        in_range = ids.min(initial=0) >= 0 and ids.max(initial=0) <= OLDER_ENHANCING
        kind = numbering(np.flatnonzero(count_voxels(ids)) if in_range else np.unique(ids), name=name)
        if kind not in _logged_kinds:
            _logged_kinds.add(kind)
            logger.info("%s and other labels use %s", name, _KINDS[kind])
        return renumber(label, {OLDER_ENHANCING: ENHANCING}) if kind == "older" else label


class BratsRegionsd(BratsLabelsd):
    """Convert label maps of any year to region channels.

    Args:
        keys: keys of the label maps.
        regions: region to class ids of BraTS 2023, in the order of the channels.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (1, X, Y, Z) becomes (C, X, Y, Z), float32; metadata are kept.

    Raises:
        InputError: see `numbering`.

    >>> regions = BratsRegionsd("label")({"label": torch.tensor([[[[0, 1, 2, 4]]]])})["label"]
    >>> regions.flatten(1).int().tolist()
    [[0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]]
    """

    def __init__(
        self, keys: KeysCollection, *, regions: Regions = BRATS_REGIONS, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.regions = regions

    def convert(self, label: torch.Tensor) -> torch.Tensor:
        """Convert one label map."""
        return split_regions(super().convert(label), self.regions)
