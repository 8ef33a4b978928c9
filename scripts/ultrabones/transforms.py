"""Frames of ultrasound on the network's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Resized
from torch.nn.functional import interpolate

from scripts.common.errors import InputError
from scripts.common.names import printable

MIN_SHARE = 0.05
"""Of the pixels; of real images at least 38 % differ from the median."""


class CheckUltrasoundd(MapTransform):
    """Refuse images that are empty but for a few pixels, as those of text and lines that a scanner adds.

    It belongs before what resizes, which spreads lines.

    Args:
        keys: keys of the images, which stay as they are.

    Raises:
        InputError: fewer than `MIN_SHARE` of the pixels differ from the median by more than 2 % of the range.

    >>> case = {"image": torch.arange(100.0)}
    >>> CheckUltrasoundd("image")(case) == case
    True
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the images of a case."""
        for key in self.keys:
            image = torch.as_tensor(data[key]).float()
            apart = (image - image.median()).abs() > 0.02 * (image.max() - image.min())
            if (share := float(apart.float().mean())) < MIN_SHARE:
                name = printable(getattr(data[key], "meta", {}).get("filename_or_obj", key))
                raise InputError(
                    f"{name}: all but {share:.1%} of its pixels have one intensity: it shows text or lines, no "
                    "ultrasound; leave it out."
                )
        return dict(data)


class ScaleFramesd(MapTransform):
    """Divide intensities by that of white, so that they lie in 0..1.

    Args:
        keys: keys of the images.
        white: 255 for 8 bits, 65535 for 16.

    Raises:
        InputError: `white` is not above 0, or intensities are below 0 or above it.

    >>> ScaleFramesd("image", white=200)({"image": torch.tensor([0.0, 50.0])})["image"].tolist()
    [0.0, 0.25]
    """

    def __init__(self, keys: KeysCollection, *, white: float = 255.0) -> None:
        super().__init__(keys)
        if not white > 0:
            raise InputError(f"white is {white}: give the intensity of white, such as 255.")
        self.white = white

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the images of a case."""
        return {**data, **{key: scale(data[key], self.white) for key in self.keys}}


def scale(image: torch.Tensor, white: float) -> torch.Tensor:
    """Scale one image; see `ScaleFramesd`."""
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > white:
        raise InputError(f"intensities are {low:g} to {high:g}, not 0 to {white:g}: set white to that of the images.")
    return image / white


class ResizeFramesd(Resized):
    """Resize frames as the published network was trained: images bilinear with antialiasing, labels by neighbours.

    Args:
        keys: keys of images and labels.
        image_key: that of the images; all others are labels.
        size: rows and columns, multiples of 32.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (1, H, W, Z) becomes (1, size, size, Z), whatever the ratio of H and W.

    Raises:
        InputError: the size is not a multiple of 32.

    Source:
        `torch.nn.functional.interpolate(antialias=True)`, which MONAI's `Resized` does not offer: its own smoothing
        differs by up to 0.06 of white.
    """

    def __init__(
        self, keys: KeysCollection, *, size: int = 256, image_key: str = "image", allow_missing_keys: bool = False
    ) -> None:
        if size < 32 or size % 32:
            raise InputError(f"image_size is {size}: give a multiple of 32.")
        names: Sequence[str] = (keys,) if isinstance(keys, str) else tuple(keys)
        modes = ["trilinear" if key == image_key else "nearest-exact" for key in names]
        super().__init__(names, (size, size, -1), mode=modes, allow_missing_keys=allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resize the frames of a case."""
        d = super().__call__(data, lazy)
        if self.image_key in self.keys and self.image_key in data:
            frames = torch.as_tensor(data[self.image_key]).movedim(-1, 0)
            size = tuple(d[self.image_key].shape[1:3])
            smooth = interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=True)
            d[self.image_key][...] = smooth.movedim(0, -1)  # keeps what the inverse needs to know
        return d
