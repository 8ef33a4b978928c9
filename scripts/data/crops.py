"""Random crops around foreground and background, of tensors and of volumes in the store."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, MultiSampleTrait, Randomizable
from monai.utils import ImageMetaKey, MetaKeys, convert_to_tensor

from scripts.common.errors import InputError
from scripts.data.places import PLACES, Places
from scripts.data.store import ChunkedVolume


class RandCropByPlacesd(Randomizable, MapTransform, MultiSampleTrait):
    """Cut random boxes centred on foreground or background.

    As `monai.transforms.RandCropByPosNegLabeld` behind `SpatialPadd`, with three differences: centres are among the
    places that `ForegroundPlacesd` lists; volumes of the store are read where the crops are, and nowhere else; and
    crops cannot be inverted. The same state of the random numbers gives the same crops of tensors and of the store.

    Boxes lie inside of the volume. Along an axis on which it is smaller than the box, it stands in the middle of the
    box, and is padded as in `SlidingWindowInferer` with `padding_mode` "replicate" or "constant". If a case has no
    foreground, all crops show background, and the other way round.

    Args:
        keys: keys to cut, on one grid.
        spatial_size: of the crops, in voxels.
        num_samples: crops per case.
        pos: weight of crops centred on foreground.
        neg: weight of crops centred on background.
        class_balanced: draw the class of a foreground centre first, all with the same probability; otherwise a class
            has the share of its voxels.
        padding_mode: "edge" repeats the edge slices of a volume that is smaller than the box, "constant" adds zeros.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Each key: (C, X, Y, Z) to a list of (C, *spatial_size).

    Raises:
        InputError: `pos` and `neg` are negative or both 0, or a case has no places.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        spatial_size: Sequence[int],
        num_samples: int = 1,
        pos: float = 1.0,
        neg: float = 1.0,
        class_balanced: bool = False,
        padding_mode: Literal["edge", "constant"] = "edge",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if min(pos, neg) < 0 or pos + neg == 0:
            raise InputError(f"pos is {pos} and neg {neg}: give weights of 0 or more, one of them above 0.")
        self.spatial_size, self.num_samples = tuple(spatial_size), num_samples
        self.foreground_share, self.class_balanced = pos / (pos + neg), class_balanced
        self.padding_mode = padding_mode

    def randomize(self, places: Places, shape: Sequence[int]) -> list[np.ndarray]:
        """Draw the first voxels of the crops.

        Args:
            places: of `ForegroundPlacesd`.
            shape: (X, Y, Z).

        Returns:
            (3,) each; negative where the volume is smaller than the crop.
        """
        size, shape = np.array(self.spatial_size), np.array(shape)
        centres = [
            np.unravel_index(self._draw_place(places, int(shape.prod())), shape) for _ in range(self.num_samples)
        ]
        thin = -((size - shape) // 2)
        return [np.where(shape < size, thin, np.clip(at - size // 2, 0, shape - size)) for at in centres]

    def _draw_place(self, places: Places, voxels: int) -> int:
        """Draw the flat index of a centre, any voxel if there are no places."""
        wants_foreground = self.R.random_sample() < self.foreground_share
        classes = places["classes"]
        foreground, background = [key for key in classes if key], [key for key in classes if not key]
        keys = (foreground or background) if wants_foreground else (background or foreground)
        if not keys:
            return self.R.randint(voxels)
        weights = np.array([1 if self.class_balanced else classes[key][0] for key in keys], dtype=float)
        _, first, end = classes[keys[self.R.choice(len(keys), p=weights / weights.sum())]]
        return int(places["at"][self.R.randint(first, end)])

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Cut the crops of a case."""
        if PLACES not in data:
            raise InputError("the case has no places of foreground: list ForegroundPlacesd before RandCropByPlacesd.")
        volumes = {key: data[key] for key in self.key_iterator(data)}
        starts = self.randomize(data[PLACES], next(iter(volumes.values())).shape[1:])
        rest = {key: value for key, value in data.items() if key not in volumes and key != PLACES}
        rest = {key: value.read() if isinstance(value, ChunkedVolume) else value for key, value in rest.items()}
        return [
            {**deepcopy(rest), **{key: self._cut(value, start, n) for key, value in volumes.items()}}
            for n, start in enumerate(starts)
        ]

    def _cut(self, volume: torch.Tensor | ChunkedVolume, start: np.ndarray, number: int) -> torch.Tensor:
        return _crop(volume, start, self.spatial_size, number, self.padding_mode)


def _crop(
    volume: torch.Tensor | ChunkedVolume, start: np.ndarray, size: Sequence[int], number: int, padding_mode: str
) -> torch.Tensor:
    """Cut a box, padded outside of the volume, and move the affine to its first voxel."""
    ends = np.minimum(start + size, volume.shape[1:])
    box = [slice(max(0, first), end) for first, end in zip(start.tolist(), ends.tolist(), strict=True)]
    is_stored = isinstance(volume, ChunkedVolume)
    values = volume.part(box) if is_stored else convert_to_tensor(volume)[(slice(None), *box)]
    crop = values if is_stored else values.clone()
    if crop.shape[1:] != tuple(size):
        outside = [(b.start - s, s + n - b.stop) for b, s, n in zip(box, start.tolist(), size, strict=True)]
        crop = torch.as_tensor(np.pad(values, [(0, 0), *outside], mode=padding_mode))
    like = volume.like if is_stored else volume
    if not isinstance(like, MetaTensor):
        return crop
    affine = like.affine.clone()
    affine[:3, 3] += affine[:3, :3] @ torch.as_tensor(start, dtype=affine.dtype)
    return MetaTensor(crop, meta={**deepcopy(like.meta), MetaKeys.AFFINE: affine, ImageMetaKey.PATCH_INDEX: number})
