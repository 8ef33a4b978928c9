"""From the voxels of a file to the volume that the network knows: its axes and its intensities."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Orientation

from scripts.common.errors import InputError
from scripts.common.names import printable
from scripts.data.plausibility import intensity_kind

PERCENTILES = (0.05, 99.95)
FILE_ORDER = "file"
logger = logging.getLogger(__name__)


class OrientSlicesFirstd(MapTransform, InvertibleTransform):
    """Orient volumes, then put the axes in the order slices, rows, columns.

    The published weights were trained on arrays in the order of their files, which differs among data sets: the
    published code asks for RAS without effect. So no orientation is sure to be the best one.

    Args:
        keys: keys of the volumes.
        orientation: of X, Y, Z before their order is reversed, such as RAS; "file": as the file has them, which is what
            the published code does.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (C, X, Y, Z) becomes (C, Z, Y, X).

    Raises:
        InputError: another orientation.

    >>> volume = MetaTensor(torch.zeros(1, 2, 3, 4), affine=torch.diag(torch.tensor([-1.0, 1, 1, 1])))
    >>> turned = OrientSlicesFirstd("image")({"image": volume})["image"]
    >>> tuple(turned.shape), nib.aff2axcodes(turned.affine)
    ((1, 4, 3, 2), ('S', 'A', 'R'))
    """

    def __init__(self, keys: KeysCollection, *, orientation: str = "RAS", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        axes = sorted(next((pair for pair in ("AP", "LR", "IS") if code in pair), code) for code in orientation)
        if orientation != FILE_ORDER and axes != ["AP", "IS", "LR"]:
            raise InputError(f"orientation is {orientation!r}: give three letters such as RAS or LPS, or {FILE_ORDER}.")
        self.orientation = orientation
        self._turn = Orientation("RAS"[::-1], labels=None)  # one for all volumes: MONAI inverts with the same object

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Orient the volumes of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            codes = nib.aff2axcodes(d[key].affine) if self.orientation == FILE_ORDER else self.orientation
            self._turn.axcodes = "".join(codes)[::-1]
            d[key] = self._turn(d[key])
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo it."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._turn.inverse(d[key])  # by what the volume records
        return d


class ScaleForegroundd(MapTransform):
    """Clip CT intensities to the range of the body and scale them to 0..1.

    The foreground are the voxels above the mean of the volume. The range are the 0.05th and 99.95th percentile of it.
    What is darker, such as air, becomes 0. Warns of intensities that are not those of CT, as the weights are for CT.

    Args:
        keys: keys of the images.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (1, D, H, W), unchanged.

    Source:
        The published code normalizes by mean and standard deviation of the foreground before it scales, which cancels.

    >>> image = torch.cat([torch.full((999,), -1000.0), torch.arange(1001.0)]).reshape(1, 10, 10, 20)
    >>> scaled = ScaleForegroundd("image")({"image": image})["image"]
    >>> float(scaled.min()), float(scaled.max()), int((scaled == 0).sum())
    (0.0, 1.0, 1000)
    """

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the images of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            name = getattr(d[key], "meta", {}).get("filename_or_obj", "image")
            d[key] = scale_foreground(d[key], name=printable(name))
        return d


def scale_foreground(image: torch.Tensor, *, name: str) -> torch.Tensor:
    """Scale one image; see `ScaleForegroundd`.

    Args:
        image: (1, D, H, W).
        name: named in the warning.
    """
    voxels = (image.as_tensor() if isinstance(image, MetaTensor) else image).cpu().numpy()
    if (kind := intensity_kind(voxels[0])) != "HU":
        logger.warning("%s: intensities look like %s, not CT in HU, for which the network is meant", name, kind)
    foreground = voxels[voxels > voxels.mean(dtype=np.float64)]
    low, high = np.percentile(foreground, PERCENTILES) if foreground.size else (0.0, 0.0)
    return image.clamp(float(low), float(high)).sub(float(low)).div(max(float(high - low), 1e-8))
