"""Slices of a segmented volume as colour images, the way radiologists look at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import nibabel as nib
import numpy as np
import torch
from matplotlib.colors import to_rgb
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter
from torch.nn.functional import avg_pool2d, interpolate

from scripts.cases import whole_numbers
from scripts.labels import foreground_classes
from scripts.volumes import voxel_counts

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = get_args(Plane)
Window = tuple[float, float]
CT_WINDOW_HU: Window = (-175.0, 250.0)
FILL, OUTLINE = 0.38, 1.0  # opacity of an organ's inside and of its border
SUPERSAMPLING = 2
AROUND_SLICES = 3
SMOOTHING_VOXELS = 0.4  # rounds steps, yet leaves a single voxel visible
PALETTE = (
    *("#4c8dff", "#ff9f1c", "#2fc9a0", "#86e03f", "#ffb8a0", "#ea6f5b", "#c98bff", "#ff2a3c", "#22c7f0"),
    *("#6f58ff", "#ffe04a", "#ff4fd8", "#b9f3ff", "#3fae49", "#c9a227", "#e0b3ff", "#008f8c", "#d6ff9e"),
)


@dataclass(frozen=True)
class Scene:
    """An image with label maps, turned so that the axes run to the patient's right, front and head.

    Attributes:
        image: (X, Y, Z) intensities.
        maps: name to (X, Y, Z) class ids.
        spacing_mm: (3,) voxel size along X, Y, Z.
        window: intensities shown as black and as white.
        names: class id to organ.
        colors: (n, 3) RGB of class ids 1..n.
    """

    image: np.ndarray
    maps: dict[str, np.ndarray]
    spacing_mm: np.ndarray
    window: Window
    names: dict[int, str]
    colors: np.ndarray

    def size_mm(self, plane: Plane) -> tuple[float, float]:
        """Return the height and width of a plane in mm."""
        x, y, z = (float(n * mm) for n, mm in zip(self.image.shape, self.spacing_mm, strict=True))
        return {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[plane]

    def present(self) -> list[int]:
        """Return the class ids that a map holds."""
        found = {int(i) for volume in self.maps.values() for i in np.flatnonzero(voxel_counts(volume))}
        return sorted(found - {0})


def class_colors(n: int) -> np.ndarray:
    """Return fixed colours that stand out on gray and from each other: a hand-made list, then the farthest.

    Args:
        n: number of classes; class id `i` has row `i - 1`.

    Returns:
        (n, 3) RGB in [0, 1]; the first rows do not depend on `n`.
    """
    colors = [np.asarray(to_rgb(color)) for color in PALETTE]
    cube = np.stack(np.meshgrid(*[np.linspace(0.1, 1.0, 8)] * 3), axis=-1).reshape(-1, 3)
    vivid = cube[(cube.max(axis=1) > 0.7) & (np.ptp(cube, axis=1) > 0.35)]
    while len(colors) < n:
        distances = np.linalg.norm(vivid[:, None] - np.stack(colors), axis=-1).min(axis=1)
        colors.append(vivid[distances.argmax()])
    return np.stack(colors)[:n]


def make_scene(
    image: np.ndarray | torch.Tensor,
    maps: Mapping[str, np.ndarray | torch.Tensor],
    *,
    affine: np.ndarray,
    class_names: Mapping[int, str],
    window: Window | None,
) -> Scene:
    """Turn an image and its label maps to the nearest RAS axes, without resampling.

    Args:
        image: intensities.
        maps: name to class ids on the same grid.
        affine: (4, 4), voxel index to mm; any orientation.
        class_names: class id to organ.
        window: intensities shown as black and white; None takes the 1st and 99th percentile.

    Shape:
        image, maps: (X, Y, Z).

    Raises:
        ValueError: shapes differ, or a map holds a class that class_names lacks.
    """
    names = foreground_classes(class_names)
    intensities = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    volumes = {name: whole_numbers(volume, name=name) for name, volume in maps.items()}
    for name, volume in volumes.items():
        if volume.shape != intensities.shape or volume.ndim != 3:
            shapes = f"{volume.shape} and the image {intensities.shape}"
            raise ValueError(f"{name} has shape {shapes}: give both as (X, Y, Z) on the image's own grid.")
    affine = np.asarray(affine, dtype=np.float64)
    turn = nib.orientations.io_orientation(affine)
    volumes = {name: nib.orientations.apply_orientation(volume, turn) for name, volume in volumes.items()}
    scene = Scene(
        image=nib.orientations.apply_orientation(intensities, turn),
        maps=volumes,
        spacing_mm=nib.affines.voxel_sizes(affine)[np.argsort(turn[:, 0])],
        window=window or _percentiles(intensities),
        names=names,
        colors=class_colors(max(names, default=0)),
    )
    if unnamed := set(scene.present()) - set(names):
        raise ValueError(f"class ids {sorted(unnamed)} are not in class_names: name or remap them.")
    return scene


def _percentiles(image: np.ndarray) -> Window:
    """Return the 1st and 99th percentile of every second voxel per axis, which are enough for a display."""
    low, high = np.percentile(image[::2, ::2, ::2], [1, 99])
    return float(low), float(high)


def best_slices(volume: np.ndarray) -> dict[Plane, int]:
    """Choose the slice of each plane that shows most organs, each by its share of its largest section.

    Of equal slices the middle one is chosen.

    Args:
        volume: (X, Y, Z) class ids in RAS; where it is empty, the middle slices are chosen.
    """
    where = np.nonzero(volume)
    if not where[0].size:
        chosen = [length // 2 for length in volume.shape]
    else:
        classes, rows = np.unique(volume[where], return_inverse=True)
        chosen = []
        for positions, length in zip(where, volume.shape, strict=True):
            areas = np.bincount(rows * length + positions, minlength=len(classes) * length)
            areas = areas.reshape(len(classes), length)
            shares = (areas / areas.max(axis=1, keepdims=True)).sum(axis=0)
            best = np.flatnonzero(shares == shares.max())
            chosen.append(int(best[len(best) // 2]))
    return {"sagittal": chosen[0], "coronal": chosen[1], "axial": chosen[2]}


def slice_run(scene: Scene, max_frames: int) -> list[int]:
    """Spread axial positions evenly over the slices with organs and a few around them, or over all.

    Args:
        scene: image and label maps.
        max_frames: the most positions to return.

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


def cut(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Cut a slice out of an RAS volume, as radiologists see it.

    Args:
        volume: (X, Y, Z).
        plane: axial and coronal show the patient's right on the left, sagittal the front on the left.
        index: position along the plane's normal.

    Returns:
        (rows, columns), from the front or head down.
    """
    slices = {
        "axial": lambda: volume[::-1, ::-1, index],
        "coronal": lambda: volume[::-1, index, ::-1],
        "sagittal": lambda: volume[index, ::-1, ::-1],
    }
    return slices[plane]().T


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
        (height, width, 3) uint8.
    """
    fine = (size_px[0] * SUPERSAMPLING, size_px[1] * SUPERSAMPLING)
    low, high = scene.window
    gray = torch.from_numpy(cut(scene.image, plane, index).astype(np.float32))
    gray = ((gray - low) / max(high - low, 1e-6)).clamp(0, 1)
    gray = interpolate(gray[None, None], fine, mode="bicubic", antialias=True).clamp(0, 1)[0]
    picture = gray.expand(3, *fine)
    if name is not None:
        labels = smooth_labels(cut(scene.maps[name], plane, index), fine)
        opacity = _opacity(labels, round(outline_px * SUPERSAMPLING))
        palette = np.vstack([np.zeros(3), scene.colors]).astype(np.float32)
        colors = torch.from_numpy(palette[labels].transpose(2, 0, 1).copy())
        picture = picture + torch.from_numpy(opacity) * (colors - picture)
    picture = avg_pool2d(picture[None], SUPERSAMPLING)[0]
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


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
    best, winner = shares[0].copy(), np.zeros(size_px, dtype=np.intp)
    for row, share in enumerate(shares[1:], start=1):  # ten times faster than argmax over the first axis
        ahead = share > best
        winner[ahead], best[ahead] = row, share[ahead]
    return present[winner]


def _opacity(labels: np.ndarray, width_px: int) -> np.ndarray:
    """Return how far each pixel takes its class's colour: not outside, FILL inside, OUTLINE at borders."""
    side = 2 * width_px + 1
    border = maximum_filter(labels, side) != minimum_filter(labels, side)
    opacity = np.where(border, OUTLINE, FILL) * (labels > 0)
    return opacity.astype(np.float32)
