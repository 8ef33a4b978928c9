"""From logits on the network's grid to a label map on the grid of the input."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Mapping
from copy import deepcopy
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd

from scripts.inference.axis_maps import AxisMaps, NotAlongAxesError, way_back
from scripts.inference.tiles import ToLabelMap, kept_classes, restore, winning_classes

_logged: set[str] = set()  # reasons for the slower way; not in the transform, which may be copied to processes
logger = logging.getLogger(__name__)


class RestoreLabelMapd(Invertd):
    """Resample logits to the grid of the input and make the label map there.

    Interpolating logits keeps borders smooth; a nearest-neighbour label map would show the network's coarse grid.
    Where the transforms work along the axes, the label map is made a tile at a time, see `scripts.inference.tiles`.
    Else, as for a sheared volume, channels are resampled one at a time by MONAI, which takes longer and holds three
    volumes of the input's size. Voxels outside the foreground crop become background; so do those exactly on its edge,
    which MONAI gives a class by a weight that is a rounding error.

    Args:
        keys: the one key of the logits.
        orig_keys: the one key of the image whose transforms are inverted.
        transform: the deterministic preprocessing of that image.
        to_label_map: how logits become class ids, by default `winning_classes`; for channels that overlap a function
            of the signs of the logits alone.
        roi_subset: the class ids that are kept, others become 0; by default all.

    Shape:
        Logits (C, x, y, z) on the network's grid, C up to 256, become class ids (1, X, Y, Z), uint8, on the grid of
        the file.

    >>> from monai.transforms import Spacingd
    >>> preprocessing = Spacingd("image", pixdim=(2, 2, 2))
    >>> case = preprocessing({"image": MetaTensor(torch.rand(1, 8, 8, 6))})
    >>> case["pred"] = MetaTensor(torch.rand(3, *case["image"].shape[1:]))
    >>> RestoreLabelMapd("pred", orig_keys="image", transform=preprocessing)(case)["pred"].shape
    torch.Size([1, 8, 8, 6])
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        orig_keys: KeysCollection,
        transform: Any,
        to_label_map: ToLabelMap = winning_classes,
        roi_subset: Collection[int] | None = None,
    ) -> None:
        super().__init__(keys, transform=transform, orig_keys=orig_keys, nearest_interp=False, device="cpu")
        self.to_label_map, self.roi_subset = to_label_map, roi_subset

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore the label map of a case."""
        key, orig_key = self.keys[0], self.orig_keys[0]
        maps = self.maps_of(data[orig_key])
        label_map = self.one_channel_at_a_time(data) if maps is None else self.by_tiles(data, maps)
        return {**data, key: label_map}

    def maps_of(self, image: Any) -> AxisMaps | None:
        """Return the way back from the network's grid, or None and a line in the log if it is not along the axes."""
        try:
            return way_back(image)
        except NotAlongAxesError as error:
            if str(error) not in _logged:
                _logged.add(str(error))
                logger.warning("label maps are restored one class at a time, which takes longer: %s", error)
            return None

    def by_tiles(self, data: Mapping[Hashable, Any], maps: AxisMaps) -> MetaTensor:
        """Restore the label map a tile at a time."""
        logits, image = data[self.keys[0]], data[self.orig_keys[0]]
        classes = restore(torch.as_tensor(logits), maps, self.to_label_map, self.roi_subset)
        return MetaTensor(classes[None], meta={**deepcopy(image.meta), "affine": torch.from_numpy(maps.affine)})

    def one_channel_at_a_time(self, data: Mapping[Hashable, Any]) -> MetaTensor:
        """Restore the label map with `monai.transforms.Invertd`, which inverts any transform."""
        key, orig_key = self.keys[0], self.orig_keys[0]
        logits, meta = data[key], {}

        def restored(channel: int) -> torch.Tensor:
            volume = super(RestoreLabelMapd, self).__call__({orig_key: data[orig_key], key: logits[channel][None]})[key]
            meta.update(volume.meta)
            return volume.as_tensor()

        classes = self.to_label_map(restored, len(logits))
        if self.roi_subset is not None:
            classes = kept_classes(self.roi_subset)[classes.long()]
        return MetaTensor(classes, meta=meta)
