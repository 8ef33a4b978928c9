"""Slices of a segmented volume as colour images in radiological orientation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter
from torch.nn.functional import avg_pool2d, interpolate

from scripts.common.errors import InputError
from scripts.common.label_maps import as_label_array, count_voxels
from scripts.common.organs import foreground_classes
from scripts.preview.colors import MID_GRAY, RGB, class_colors

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = get_args(Plane)
IntensityWindow = tuple[float, float]
CT_WINDOW_HU: IntensityWindow = (-175.0, 250.0)
FILL, OUTLINE = 0.38, 1.0  # opacity of an organ's inside and of its border
SUPERSAMPLING = 2
AROUND_SLICES = 3
SMOOTHING_VOXELS = 0.4  # rounds steps, yet leaves a single voxel visible


@dataclass(frozen=True)
class Scene:
    """An image with label maps, turned so that the axes run to the patient's right, front and head.

    Attributes:
        image: (X, Y, Z) intensities.
        maps: name to (X, Y, Z) class ids.
        spacing_mm: (3,) voxel size along X, Y, Z.
        window: intensities shown as black and as white.
        names: class id to organ.
        colors: class id to the colour of its organ.
        present: ascending class ids that the maps hold, without the background.
    """

    image: np.ndarray
    maps: dict[str, np.ndarray]
    spacing_mm: np.ndarray
    window: IntensityWindow
    names: dict[int, str]
    colors: dict[int, RGB]
    present: list[int]

    def size_mm(self, plane: Plane) -> tuple[float, float]:
        """Return the height and width of a plane in mm."""
        x, y, z = (float(n * mm) for n, mm in zip(self.image.shape, self.spacing_mm, strict=True))
        return {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[plane]


def make_scene(
    image: np.ndarray | torch.Tensor,
    maps: Mapping[str, np.ndarray | torch.Tensor],
    *,
    affine: np.ndarray,
    class_names: Mapping[int, str],
    window: IntensityWindow | None,
) -> Scene:
    """Flip and permute an image and its label maps to the nearest RAS axes, without resampling.

    Args:
        image: intensities.
        maps: name to class ids on the same grid.
        affine: (4, 4), voxel index to mm; any orientation.
        class_names: class id to organ.
        window: intensities shown as black and white; None takes the 1st and 99th percentile.

    Shape:
        image, maps: (X, Y, Z).

    Raises:
        InputError: shapes differ, or a map holds a class that class_names lacks.
    """
    names = foreground_classes(class_names)
    intensities = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    volumes = {name: as_label_array(volume, name=name) for name, volume in maps.items()}
    for name, volume in volumes.items():
        if volume.shape != intensities.shape or volume.ndim != 3:
            shapes = f"{volume.shape} and the image {intensities.shape}"
            raise InputError(f"{name} has shape {shapes}: give both as (X, Y, Z) on the image's own grid.")
    present = sorted({int(i) for volume in volumes.values() for i in np.flatnonzero(count_voxels(volume))} - {0})
    if unnamed := set(present) - set(names):
        raise InputError(f"class ids {sorted(unnamed)} are not in class_names: name or remap them.")
    return Scene(
        image=to_ras(intensities, affine),
        maps={name: to_ras(volume, affine) for name, volume in volumes.items()},
        spacing_mm=ras_spacing_mm(affine),
        window=window or _percentiles(intensities),
        names=names,
        colors=class_colors(names),
        present=present,
    )


def to_ras(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Flip and permute the axes of a volume (X, Y, Z) to the nearest RAS axes, without resampling."""
    return nib.orientations.apply_orientation(volume, nib.orientations.io_orientation(affine))


def ras_spacing_mm(affine: np.ndarray) -> np.ndarray:
    """Return the voxel size along the axes of `to_ras`, (3,)."""
    order = np.argsort(nib.orientations.io_orientation(affine)[:, 0])
    return nib.affines.voxel_sizes(np.asarray(affine, dtype=np.float64))[order]


def _percentiles(image: np.ndarray) -> IntensityWindow:
    """Return the 1st and 99th percentile of every second voxel per axis, which are enough for a display."""
    low, high = np.percentile(image[::2, ::2, ::2], [1, 99])
    return float(low), float(high)


def best_slices(volume: np.ndarray) -> dict[Plane, int]:
    """Choose the slice of each plane that shows most organs, each by its share of its largest section.

    Of equal slices, and so of those of an empty volume, the middle one is chosen.

    Args:
        volume: (X, Y, Z) class ids in RAS.
    """
    n, chosen = int(volume.max(initial=0)) + 1, []
    for axis in range(3):
        planes = np.moveaxis(volume, axis, 0)
        areas = np.stack([np.bincount(plane.ravel(), minlength=n)[1:] for plane in planes])
        shares = (areas / areas.max(axis=0).clip(min=1)).sum(axis=1)
        best = np.flatnonzero(shares == shares.max())
        chosen.append(int(best[len(best) // 2]))
    return {"sagittal": chosen[0], "coronal": chosen[1], "axial": chosen[2]}


def slice_positions(scene: Scene, max_frames: int) -> list[int]:
    """Spread axial positions evenly over the slices with organs and a few on either side, or over all.

    Args:
        scene: image and label maps.
        max_frames: maximum number of positions.

    Returns:
        Ascending positions along Z.
    """
    depth = scene.image.shape[2]
    filled = np.zeros(depth, dtype=bool)
    for volume in scene.maps.values():
        filled |= volume.any(axis=(0, 1))
    where = np.flatnonzero(filled) if filled.any() else np.arange(depth)
    low, high = max(0, where[0] - AROUND_SLICES), min(depth - 1, where[-1] + AROUND_SLICES)
    count = min(int(high - low) + 1, max_frames)
    return [int(index) for index in np.linspace(low, high, count).round()]


def extract_slice(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Extract a slice of an RAS volume, as radiologists see it.

    Args:
        volume: (X, Y, Z).
        plane: axial and coronal show the patient's right on the left, sagittal the front on the left.
        index: position along the plane's normal.

    Returns:
        (rows, columns), from the front or head down.
    """
    back = slice(None, None, -1)
    where = {"axial": (back, back, index), "coronal": (back, index, back), "sagittal": (index, back, back)}
    return volume[where[plane]].T


def render(
    scene: Scene,
    name: str | None,
    plane: Plane,
    index: int,
    *,
    size_px: tuple[int, int],
    outline_px: float = 1.5,
) -> np.ndarray:
    """Draw a slice with its organs as coloured, outlined areas.

    Args:
        scene: what to draw.
        name: which of its maps, or None for the image alone.
        plane: which way to cut.
        index: where to cut.
        size_px: height and width of the result.
        outline_px: width of the outlines.

    Returns:
        (height, width, 3) uint8, even values.
    """
    fine = (size_px[0] * SUPERSAMPLING, size_px[1] * SUPERSAMPLING)
    low, high = scene.window
    gray = torch.from_numpy(extract_slice(scene.image, plane, index).astype(np.float32))
    gray = ((gray - low) / max(high - low, 1e-6)).clamp(0, 1)
    gray = interpolate(gray[None, None], fine, mode="bicubic", antialias=True).clamp(0, 1)[0]
    picture = gray.expand(3, *fine)
    if name is not None:
        labels = smooth_labels(extract_slice(scene.maps[name], plane, index), fine)
        opacity = _opacity(labels, round(outline_px * SUPERSAMPLING))
        colors = torch.from_numpy(_palette(scene.colors)[labels].transpose(2, 0, 1).copy())
        picture = picture + torch.from_numpy(opacity) * (colors - picture)
    picture = avg_pool2d(picture[None], SUPERSAMPLING)[0]
    even = (picture * 127).round() * 2  # an even last bit is not seen, and makes PNG files a fifth smaller
    return even.to(torch.uint8).permute(1, 2, 0).numpy()


def inside_color(color: RGB) -> RGB:
    """Return how the inside of an organ looks over mid gray, for legends."""
    red, green, blue = (round(FILL * part + (1 - FILL) * gray) for part, gray in zip(color, MID_GRAY, strict=True))
    return red, green, blue


def _palette(colors: Mapping[int, RGB]) -> np.ndarray:
    """Return the colour of each class id from 0 as a row of (n, 3) float32 in [0, 1]."""
    rows = [colors.get(class_id, (0, 0, 0)) for class_id in range(max(colors, default=0) + 1)]
    return np.array(rows, dtype=np.float32) / 255


def smooth_labels(labels: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Resize a label slice so that borders run smoothly between voxel centres; no class lies over another.

    Args:
        labels: (rows, columns) class ids.
        size_px: height and width of the result.
    """
    present = np.unique(labels)
    one_hot = (labels[None] == present[:, None, None]).astype(np.float32)
    if labels.shape[0] < size_px[0]:
        one_hot = gaussian_filter(one_hot, (0, SMOOTHING_VOXELS, SMOOTHING_VOXELS), mode="nearest")
    shares = interpolate(torch.from_numpy(one_hot)[None], size_px, mode="bilinear", antialias=True)[0].numpy()
    best, winner = shares[0].copy(), np.full(size_px, present[0])
    for class_id, share in zip(
        present[1:], shares[1:], strict=True
    ):  # ten times faster than argmax over the first axis
        ahead = share > best
        winner[ahead], best[ahead] = class_id, share[ahead]
    return winner


def _opacity(labels: np.ndarray, width_px: int) -> np.ndarray:
    """Return how far each pixel takes its class's colour: not outside, FILL inside, OUTLINE at borders."""
    opacity = np.where(borders(labels, width_px), OUTLINE, FILL) * (labels > 0)
    return opacity.astype(np.float32)


def borders(labels: np.ndarray, width_px: int) -> np.ndarray:
    """Return which pixels of a label slice (rows, columns) lie within `width_px` of another class."""
    side = 2 * width_px + 1
    return maximum_filter(labels, side) != minimum_filter(labels, side)
