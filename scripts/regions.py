"""Tumour regions that overlap (TC, WT, ET), and the label maps that they are read from and written to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.cases import whole_numbers
from scripts.volumes import voxel_counts

Regions = Mapping[str, Sequence[int]]
"""Region to the class ids that make it up, in the order of the network's channels."""

BRATS_REGIONS: Regions = {"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,)}
ENHANCING, OLDER_ENHANCING = 3, 4
LABEL_SETS = ((0, 1, 2, 3), (0, 1, 2, 4))
"""Values of BraTS 2023 (1 necrotic core, 2 edema, 3 enhancing tumour) and of the years before (4 enhancing)."""

logger = logging.getLogger(__name__)


def numbering(values: Sequence[int], *, name: str) -> str:
    """Tell which numbering a label map has.

    Args:
        values: the distinct class ids that it holds.
        name: named in the messages.

    Returns:
        "2023" where it holds a 3, "older" where it holds a 4, "either" where it holds neither.

    Raises:
        ValueError: it holds both, or values that neither numbering knows.
    """
    found = {int(value) for value in values}
    if unknown := sorted(found.difference(*LABEL_SETS)):
        listed = ", ".join(map(str, unknown[:8]))
        raise ValueError(f"{name}: holds the label values {listed}; BraTS has 1, 2, 3 (2023) or 1, 2, 4 (older).")
    if {ENHANCING, OLDER_ENHANCING} <= found:
        raise ValueError(f"{name}: holds both 3 and 4, which mean the same in BraTS 2023 and before: keep one of them.")
    return "2023" if ENHANCING in found else "older" if OLDER_ENHANCING in found else "either"


def paint_order(regions: Regions) -> list[tuple[int, int]]:
    """Order nested regions from the outermost to the innermost, each with the class id that it alone adds.

    Args:
        regions: such as `BRATS_REGIONS`.

    Returns:
        Pairs of channel and class id; for BraTS WT paints 2, TC paints 1 over it, ET paints 3 over both.

    Raises:
        ValueError: the regions are not nested, or one adds no class or more than one to the next inner.
    """
    outermost_first = sorted(enumerate(regions.values()), key=lambda item: -len(set(item[1])))
    inner_sets = [set(ids) for _, ids in outermost_first[1:]] + [set()]
    order = []
    for (channel, ids), inner in zip(outermost_first, inner_sets, strict=True):
        own = set(ids) - inner
        if len(own) != 1 or not inner <= set(ids):
            listed = {name: list(ids) for name, ids in regions.items()}
            raise ValueError(f"regions {listed} are not nested with one class id more from each to the next.")
        order.append((channel, own.pop()))
    return order


def paint_regions(mask_of: Callable[[int], torch.Tensor], regions: Regions) -> torch.Tensor:
    """Paint nested regions into one label map, the inner over the outer.

    What reads the map again finds the regions that went in, if those were nested. Where they were not, the inner
    one is believed: a voxel of ET that is missing from TC or WT then belongs to these too. Each region read is
    thus the union of the region painted and all regions within it.

    Args:
        mask_of: makes the mask of a channel; asked for one channel at a time.
        regions: such as `BRATS_REGIONS`.

    Shape:
        Masks of any shape, bool, become class ids of that shape, uint8.
    """
    label = None
    for channel, class_id in paint_order(regions):
        mask = mask_of(channel)
        label = torch.zeros(mask.shape, dtype=torch.uint8, device=mask.device) if label is None else label
        label[mask] = class_id
    return label


def merge_regions(masks: torch.Tensor, regions: Regions = BRATS_REGIONS) -> torch.Tensor:
    """Turn region channels into one label map; see `paint_regions`.

    Args:
        masks: region channels; what is above 0 belongs to the region.
        regions: their class ids, in the order of the channels.

    Shape:
        (C, ...) becomes (1, ...), uint8; a MetaTensor keeps its metadata.

    Raises:
        ValueError: there are not as many channels as regions.
    """
    check_channels(masks, regions)
    plain = masks.as_tensor() if isinstance(masks, MetaTensor) else masks
    label = paint_regions(lambda channel: plain[channel][None] > 0, regions)
    return MetaTensor(label, meta=masks.meta) if isinstance(masks, MetaTensor) else label


def check_channels(channels: torch.Tensor, regions: Regions) -> None:
    """Refuse a prediction of which the channels are not the regions.

    Raises:
        ValueError: there are more or fewer.
    """
    if len(channels) != len(regions):
        raise ValueError(f"{len(channels)} channels for the regions {list(regions)}: give as many regions as channels.")


def split_regions(label: torch.Tensor, regions: Regions = BRATS_REGIONS) -> torch.Tensor:
    """Turn a label map into region channels.

    Args:
        label: class ids.
        regions: their class ids, in the order of the channels.

    Shape:
        (1, ...) becomes (C, ...), float32 as losses and metrics take it; a MetaTensor keeps its metadata.
    """
    masks = [torch.stack([label == class_id for class_id in ids]).any(dim=0) for ids in regions.values()]
    return torch.cat(masks).to(torch.float32)


class BratsLabelsd(MapTransform):
    """Bring label maps of any year into the numbering of BraTS 2023, and say once which one they have.

    Args:
        keys: keys of the label maps.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (1, X, Y, Z), unchanged, as are type and metadata.

    Raises:
        ValueError: see `numbering`; the message names the file and the values.
    """

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._told: set[str] = set()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._renumbered(d[key])
        return d

    def _renumbered(self, label: torch.Tensor) -> torch.Tensor:
        """Return the label map itself where nothing is to be changed."""
        name = str(getattr(label, "meta", {}).get("filename_or_obj", "label"))
        kind = numbering(np.flatnonzero(voxel_counts(whole_numbers(label[0], name=name))), name=name)
        if kind not in self._told:
            self._told.add(kind)
            meaning = {
                "2023": "1 necrotic core, 2 edema, 3 enhancing: BraTS 2023",
                "older": "1 necrotic core, 2 edema, 4 enhancing: older than BraTS 2023, read as 1, 2, 3",
                "either": "neither 3 nor 4, so no enhancing tumour in any numbering",
            }
            logger.info("%s and others like it: %s", name, meaning[kind])
        if kind != "older":
            return label
        renumbered = label.clone()
        renumbered[label == OLDER_ENHANCING] = ENHANCING
        return renumbered


class BratsRegionsd(BratsLabelsd):
    """Turn label maps of any year into region channels.

    Args:
        keys: keys of the label maps.
        regions: region to class ids of BraTS 2023, in the order of the channels.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (1, X, Y, Z) becomes (C, X, Y, Z), float32; metadata are kept.

    Raises:
        ValueError: see `numbering`.
    """

    def __init__(
        self, keys: KeysCollection, *, regions: Regions = BRATS_REGIONS, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.regions = regions

    def _renumbered(self, label: torch.Tensor) -> torch.Tensor:
        return split_regions(super()._renumbered(label), self.regions)
