"""Intensities of slices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, ScaleIntensity

from scripts.common.errors import InputError

Normalization = Literal["slice", "volume", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)


class ScaleSlicesd(MapTransform):
    """Clip intensities to a range, then scale them to 0..1; slices lie along the last axis.

    Args:
        keys: keys of the images.
        normalization: "slice": 0 and 1 are the least and the largest value of each slice, so that a slice of a volume
            gets the values that it has as a picture; "volume": of the whole volume; "none": the intensities are 0..1
            already.
        intensity_range: ends of the range, in the unit of the image, such as (-175, 250) HU; None does not clip.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (1, H, W, Z), unchanged. A slice of a single value becomes 0.

    Raises:
        InputError: another normalization, a range that is none, or intensities outside of 0..1 with "none".

    >>> image = torch.arange(12.0).reshape(1, 2, 2, 3)
    >>> ScaleSlicesd("image")({"image": image})["image"][0, :, :, 1].tolist()
    [[0.0, 0.3333333432674408], [0.6666666865348816, 1.0]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        normalization: Normalization = "slice",
        intensity_range: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if normalization not in NORMALIZATIONS:
            raise InputError(f"normalization is {normalization!r}: give one of {', '.join(NORMALIZATIONS)}.")
        if intensity_range is not None and not (len(intensity_range) == 2 and intensity_range[0] < intensity_range[1]):
            raise InputError(f"intensity_range is {intensity_range!r}: give two numbers, the smaller one first.")
        self.normalization, self.intensity_range = normalization, intensity_range

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the images of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.scale(d[key])
        return d

    def scale(self, image: torch.Tensor) -> torch.Tensor:
        """Scale one image."""
        if self.intensity_range is not None:
            image = image.clamp(*self.intensity_range)
        low, high = float(image.min()), float(image.max())
        if self.normalization == "none":
            if low < 0 or high > 1:
                raise InputError(f"intensities are {low:g} to {high:g}, not in 0..1: set normalization to slice.")
            return image
        if self.normalization == "volume":
            return ScaleIntensity(minv=0.0, maxv=1.0)(image)
        slices = image.movedim(-1, 0)  # as channels
        return torch.stack([ScaleIntensity(minv=0.0, maxv=1.0)(one) for one in slices], dim=-1)
