"""The way back from the network's grid to the grid of the file, as one matrix of weights per axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.utils import TraceKeys
from torch.nn import functional

from scripts.common.errors import InputError

TOLERANCE_VOXELS = 1e-3
"""Largest distance of a voxel from where a map along the axes puts it; rounding of a header to float32 makes less."""
_ROUNDING = 1e-6  # a voxel just outside of the crop must not take its class from a weight that is a rounding error


class NotAlongAxesError(InputError):
    """A transform whose inverse is not a linear map along each axis."""


@dataclass(frozen=True)
class AxisMaps:
    """Linear maps that take a volume on the network's grid to another grid, one axis at a time.

    Args:
        axes: the network's axis that each axis follows.
        weights: per axis, the weights (voxels, network's voxels) of linear interpolation; a row of zeros is outside
            of the crop.
        affine: voxel indices to mm, (4, 4), float64.
    """

    axes: tuple[int, ...]
    weights: tuple[torch.Tensor, ...]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along each axis."""
        return tuple(map(len, self.weights))

    def shift(self, before: Sequence[int], after: Sequence[int]) -> AxisMaps:
        """Add voxels of 0 at both ends of each axis; a negative number takes voxels away."""
        ends = zip(self.weights, before, after, strict=True)
        weights = tuple(functional.pad(weight, (0, 0, start, end)) for weight, start, end in ends)
        moved = nib.affines.from_matvec(np.eye(3), np.negative(before))
        return replace(self, weights=weights, affine=self.affine @ moved)

    def reorder(self, orientation: np.ndarray) -> AxisMaps:
        """Flip and swap axes, as `nibabel.orientations.apply_orientation`."""
        order = np.argsort(orientation[:, 0])
        flipped = [w.flip(0) if sign < 0 else w for w, sign in zip(self.weights, orientation[:, 1], strict=True)]
        affine = self.affine @ nib.orientations.inv_ornt_aff(orientation, self.shape)
        return AxisMaps(tuple(self.axes[i] for i in order), tuple(flipped[i] for i in order), affine)

    def resample(self, affine: np.ndarray, shape: Sequence[int]) -> AxisMaps:
        """Interpolate linearly on another grid; outside of this one, its nearest voxel is repeated.

        Raises:
            NotAlongAxesError: the grids are turned or sheared against each other.
        """
        change = np.linalg.solve(self.affine, affine)
        near = any(np.allclose(a, b, atol=AFFINE_TOL) for a, b in ((self.affine, affine), (change, np.eye(4))))
        if near and self.shape == tuple(shape):
            return self  # MONAI returns the volume as it is
        centre = (np.array(shape) - 1) / 2
        scale, across = np.diag(change)[:3], change[:3, :3] - np.diag(np.diag(change)[:3])
        if (off := (np.abs(across) @ centre).max()) > TOLERANCE_VOXELS:
            raise NotAlongAxesError(f"its axes are turned or sheared by {off:.3g} voxels")
        starts = change[:3, 3] + across @ centre
        positions = [start + step * np.arange(n) for start, step, n in zip(starts, scale, shape, strict=True)]
        weights = tuple(interpolation(x, len(w)) @ w for x, w in zip(positions, self.weights, strict=True))
        return AxisMaps(self.axes, weights, affine)


def interpolation(positions: np.ndarray, n: int) -> torch.Tensor:
    """Return the weights of linear interpolation of n voxels, whose ends are repeated, as `grid_sample` with `border`.

    >>> interpolation(np.array([-1.0, 0.25]), 2)
    tensor([[1.0000, 0.0000],
            [0.7500, 0.2500]], dtype=torch.float64)
    """
    inside = torch.from_numpy(positions).clamp(0, n - 1)
    weights = 1 - (inside[:, None] - torch.arange(n, dtype=torch.float64)).abs()
    return torch.where(weights > _ROUNDING, weights, 0)


def way_back(image: MetaTensor) -> AxisMaps:
    """Compose the inverse of all transforms that were applied to an image.

    Args:
        image: on the network's grid; its `applied_operations` are of flips, axis swaps, linear resampling with
            repeated borders, cropping and padding.

    Shape:
        image: (C, x, y, z).

    Raises:
        NotAlongAxesError: names the transform that is none of these.
    """
    shape = tuple(image.shape[1:])
    if len(shape) != 3 or image.pending_operations:
        raise NotAlongAxesError("needs a volume of three axes without pending operations")
    unchanged = tuple(torch.eye(n, dtype=torch.float64) for n in shape)
    maps = AxisMaps((0, 1, 2), unchanged, np.asarray(image.affine.cpu(), dtype=np.float64))
    for operation in reversed(image.applied_operations):
        maps = _undo(maps, operation)
    for weight in maps.weights:
        used = weight > 0
        first, last = used.to(torch.uint8).argmax(1), weight.shape[1] - 1 - used.to(torch.uint8).flip(1).argmax(1)
        if (used.any(1) & (last - first > 1)).any():
            raise NotAlongAxesError("resamples more than once")
    return maps


def _undo(maps: AxisMaps, operation: Mapping[str, Any]) -> AxisMaps:
    """Invert one entry of `applied_operations`."""
    info = operation.get(TraceKeys.EXTRA_INFO, {})
    inverse = _INVERSES.get(frozenset(info))
    try:
        if inverse is None or not operation.get(TraceKeys.DO_TRANSFORM, True):
            raise NotAlongAxesError("is not inverted along the axes")
        return inverse(maps, info, [int(n) for n in operation[TraceKeys.ORIG_SIZE]])
    except NotAlongAxesError as error:
        raise NotAlongAxesError(f"{operation.get(TraceKeys.CLASS_NAME)} {error}") from None


def _uncrop(maps: AxisMaps, info: Mapping[str, Any], _: Sequence[int]) -> AxisMaps:
    cropped = [int(n) for n in info["cropped"]]
    return maps.shift(cropped[::2], cropped[1::2])


def _unpad(maps: AxisMaps, info: Mapping[str, Any], _: Sequence[int]) -> AxisMaps:
    (_channel, *axes) = [(-int(before), -int(after)) for before, after in info["padded"]]
    return maps.shift(*zip(*axes, strict=True))


def _uncrop_and_unpad(maps: AxisMaps, info: Mapping[str, Any], shape: Sequence[int]) -> AxisMaps:
    crop = info["crop_info"][TraceKeys.EXTRA_INFO] if "crop_info" in info else info
    return _uncrop(_unpad(maps, info["pad_info"][TraceKeys.EXTRA_INFO], shape), crop, shape)


def _unflip(maps: AxisMaps, info: Mapping[str, Any], _: Sequence[int]) -> AxisMaps:
    axes = range(3) if info["axes"] is None else [int(axis) % 3 for axis in np.atleast_1d(info["axes"])]
    return maps.reorder(np.array([(axis, -1 if axis in axes else 1) for axis in range(3)]))


def _unorient(maps: AxisMaps, info: Mapping[str, Any], _: Sequence[int]) -> AxisMaps:
    ours, theirs = (nib.io_orientation(np.asarray(a)) for a in (maps.affine, info["original_affine"]))
    return maps.reorder(nib.orientations.ornt_transform(ours, theirs))


def _unresample(maps: AxisMaps, info: Mapping[str, Any], shape: Sequence[int]) -> AxisMaps:
    if (info["mode"], info["padding_mode"]) != ("bilinear", "border"):
        raise NotAlongAxesError(f"interpolates with {info['mode']} and {info['padding_mode']}")
    return maps.resample(np.asarray(info["src_affine"], dtype=np.float64), shape)


def _unresize(maps: AxisMaps, info: Mapping[str, Any], shape: Sequence[int]) -> AxisMaps:
    if info["mode"] != "trilinear" or info["align_corners"] not in (TraceKeys.NONE, False):
        raise NotAlongAxesError(f"interpolates with {info['mode']} and align_corners {info['align_corners']}")
    steps = np.array(maps.shape) / np.array(shape)
    places = [(np.arange(n) + 0.5) * step - 0.5 for n, step in zip(shape, steps, strict=True)]
    weights = tuple(interpolation(x, len(w)) @ w for x, w in zip(places, maps.weights, strict=True))
    return replace(maps, weights=weights, affine=maps.affine @ nib.affines.from_matvec(np.diag(steps), (steps - 1) / 2))


_INVERSES: Mapping[frozenset[str], Callable[..., AxisMaps]] = {
    frozenset({"cropped"}): _uncrop,
    frozenset({"padded", "mode"}): _unpad,
    frozenset({"cropped", "pad_info"}): _uncrop_and_unpad,
    frozenset({"crop_info", "pad_info"}): _uncrop_and_unpad,
    frozenset({"axes"}): _unflip,
    frozenset({"original_affine"}): _unorient,
    frozenset({"dtype", "mode", "padding_mode", "align_corners", "src_affine"}): _unresample,
    frozenset({"dtype", "mode", "align_corners", "new_dim"}): _unresize,
}
"""What MONAI records of a transform, by which its inverse is told."""
