"""Prompts in the frames of coordinates that they pass: file, working volume, zoomed-out volume, window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import nibabel as nib
import numpy as np
import torch
from monai.transforms import generate_spatial_bounding_box

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.segvol.prompt_files import Prompt

_TO_RAS = {"RAS": np.diag([1.0, 1, 1, 1]), "LPS": np.diag([-1.0, -1, 1, 1])}

_FAR = 1 << 40
"""Voxels; farther corners of a box are outside of any volume, and no integers."""


@dataclass(frozen=True)
class Placed:
    """Points and box of a prompt in voxels of a volume (D, H, W).

    Attributes:
        points: (N, 3).
        labels: (N,), 1 positive, 0 negative.
        box: (6,), least and largest voxel, or None.
    """

    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray | None

    def moved(self, start: Sequence[int]) -> Placed:
        """Return the same in a window whose first voxel is `start`."""
        box = None if self.box is None else self.box - np.tile(start, 2)
        return replace(self, points=self.points - np.asarray(start), box=box)

    def within(self, size: Sequence[int]) -> Placed:
        """Return the points in a window of a size, and the part of the box that is in it."""
        inside = ((self.points >= 0) & (self.points < np.asarray(size))).all(axis=1)
        return Placed(self.points[inside], self.labels[inside], _clipped(self.box, size))

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Return what `scripts.models.segvol.SegVol.decode` takes."""
        found = {"points": self.points, "point_labels": self.labels} if len(self.points) else {}
        found |= {} if self.box is None else {"boxes": self.box}
        return {key: torch.as_tensor(value, dtype=torch.int64, device=device)[None] for key, value in found.items()}


def place(prompt: Prompt, *, file: Grid, working: Grid) -> Placed:
    """Bring a prompt into the working volume.

    Args:
        prompt: in the space that it names.
        file: grid of the image's file.
        working: grid of the working volume, whose axes are those of the file in another order or direction.

    Raises:
        InputError: a point or the whole box lies outside of the image, or of the part of it that is not air.
    """
    to_file = np.eye(4) if prompt.space == "voxel" else np.linalg.inv(file.affine) @ _TO_RAS[prompt.space]
    points = np.array([*prompt.points, *prompt.negative]).reshape(-1, 3)
    labels = np.array([1] * len(prompt.points) + [0] * len(prompt.negative), dtype=np.int64)
    voxels = np.floor(nib.affines.apply_affine(to_file, points) + 0.5)
    for point, voxel in zip(points, voxels, strict=True):
        if (voxel < 0).any() or (voxel >= file.shape).any():
            raise InputError(f"{prompt.name}: the point {_text(point)} {_outside(prompt, file, voxel)}")
    box = _box_in(np.array(prompt.box), to_file) if prompt.box else None
    if box is not None and _clipped(box, file.shape) is None:
        raise InputError(f"{prompt.name}: the box {_text(prompt.box)} {_outside(prompt, file, box)}")
    to_working = np.linalg.inv(working.affine) @ file.affine
    points = np.rint(nib.affines.apply_affine(to_working, voxels)).astype(np.int64)
    inside = ((points >= 0) & (points < working.shape)).all(axis=1)  # the others lie in the air that was cut off
    if len(labels) and (labels == 1).any() and not inside[labels == 1].any():
        raise InputError(f"{prompt.name}: all its points lie on air; move them onto the structure.")
    if box is not None:
        box = _clipped(_box_in(box, to_working), working.shape)
        if box is None:
            raise InputError(f"{prompt.name}: its box holds only air; move it onto the structure.")
    return Placed(points[inside], labels[inside], box)


def _box_in(box: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the least voxels that hold a box after a change of coordinates."""
    corners = nib.affines.apply_affine(matrix, list(product(*zip(box[:3], box[3:], strict=True))))
    ends = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    return np.floor(ends.clip(-_FAR, _FAR) + 0.5).astype(np.int64)


def _clipped(box: np.ndarray | None, shape: Sequence[int]) -> np.ndarray | None:
    """Return the part of a box that lies in a volume, or None if there is none."""
    if box is None:
        return None
    low, high = np.maximum(box[:3], 0), np.minimum(box[3:], np.asarray(shape) - 1)
    return None if (low > high).any() else np.concatenate([low, high])


def zoomed_out(placed: Placed, shape: Sequence[int], size: Sequence[int]) -> Placed:
    """Bring points and box of a volume into the same volume, resized by the nearest voxel.

    The box is that of the voxels of the resized volume that show one of the box; of a thin box the nearest ones.

    Args:
        placed: in the volume.
        shape: of the volume.
        size: that it is resized to.
    """
    scale = np.asarray(size) / np.asarray(shape)
    points = np.floor((placed.points + 0.5) * scale).astype(np.int64)
    box = None
    if placed.box is not None:
        low = np.ceil(placed.box[:3] * scale - 0.5)
        high = np.ceil((placed.box[3:] + 1) * scale - 0.5) - 1
        middle = np.floor((placed.box[:3] + placed.box[3:] + 1) / 2 * scale)
        low, high = np.where(low > high, middle, low), np.where(low > high, middle, high)
        box = np.concatenate([low, high]).astype(np.int64)
    return replace(placed, points=points, box=box)


def reflected(box: np.ndarray, size: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Return which voxels of a volume a box of the resized volume means, as the published code finds them.

    Args:
        box: (6,) in the resized volume.
        size: of the resized volume.
        shape: of the volume.
    """
    scale = np.asarray(shape) / np.asarray(size)
    return np.concatenate([np.ceil(box[:3] * scale), np.ceil((box[3:] + 1) * scale) - 1]).astype(np.int64)


def box_of(mask: torch.Tensor) -> np.ndarray | None:
    """Return the first and the last voxel of a mask (D, H, W) along each axis, (6,), or None if it is empty."""
    low, high = generate_spatial_bounding_box(mask[None], allow_smaller=True)
    return np.array([*low, *(end - 1 for end in high)]) if any(high) else None


def _text(numbers: Sequence[float]) -> str:
    return f"({', '.join(f'{number:g}' for number in numbers)})"


def _outside(prompt: Prompt, file: Grid, voxel: np.ndarray) -> str:
    at = "" if prompt.space == "voxel" else f" in mm {prompt.space} is voxel {_text(voxel)}, which"
    size = " x ".join(map(str, file.shape))
    return (
        f"{at} lies outside of the image, of {size} voxels; give indices from 0, or set space to RAS or LPS.".lstrip()
    )
