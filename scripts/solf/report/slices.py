"""The surroundings of one label, with the image if there is one, small enough for the page to load on demand."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import inv_ornt_aff, io_orientation
from PIL import Image
from scipy.ndimage import affine_transform, find_objects

from scripts.common.errors import InputError
from scripts.io.nifti import StoredVolume, read_nifti
from scripts.preview.rendering import CT_WINDOW_HU, best_slices, ras_spacing_mm, to_ras

MAX_VOXELS = 96
"""Along each axis; larger crops lose resolution."""
MARGIN_MM, MIN_HALF_MM = 20.0, 32.0
HU_OF_AIR = -500.0
QUALITY = 80
_OTHERS = 255


@dataclass(frozen=True)
class Picture:
    """An image behind label maps, on any grid.

    Attributes:
        volume: as stored.
        window: intensities that are shown as black and as white.
    """

    volume: StoredVolume
    window: tuple[float, float]

    @classmethod
    def read(cls, path: str) -> Picture:
        """Read an image; values below HU_OF_AIR are taken for a CT, others are shown from 1 to 99 %.

        Raises:
            InputError: it cannot be read.
        """
        volume = read_nifti(path)
        if volume.value_range[0] <= HU_OF_AIR:
            return cls(volume, CT_WINDOW_HU)
        low, high = np.nanpercentile(volume.stored[::3, ::3, ::3], [1, 99]) * volume.slope + volume.inter
        return cls(volume, (float(low), float(high)))

    def sampled(self, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the image on another grid, uint8; outside of it black."""
        low, high = self.window
        to_own = np.linalg.inv(self.volume.affine) @ affine
        black = (low - self.volume.inter) / self.volume.slope
        options = {"offset": to_own[:3, 3], "output_shape": shape, "output": np.float32, "order": 1, "cval": black}
        stored = affine_transform(np.asarray(self.volume.stored), to_own[:3, :3], **options)
        shares = (stored * self.volume.slope + self.volume.inter - low) / max(high - low, 1e-6)
        return (np.nan_to_num(shares).clip(0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class LabelMap:
    """A label map with what all crops of it need, computed once.

    Attributes:
        labels: (I, J, K) ids.
        affine: (4, 4), voxel indices to mm, any orientation.
        organs: label id to name.
        rejected: ids of the rejected labels of the case.
    """

    labels: np.ndarray
    affine: np.ndarray
    organs: Mapping[int, str]
    rejected: Collection[int]

    @cached_property
    def ras(self) -> np.ndarray:
        """The labels with axes to the right, the front and the head."""
        return np.ascontiguousarray(to_ras(self.labels, self.affine))

    @cached_property
    def boxes(self) -> list[tuple[slice, slice, slice] | None]:
        """The box of each label in `ras`, from 1."""
        return find_objects(self.ras)

    def box(self, label: int) -> tuple[slice, slice, slice]:
        """Return the box of a label in `ras`.

        Raises:
            InputError: the map does not hold the label.
        """
        box = self.boxes[label - 1] if label <= len(self.boxes) else None
        if box is None:
            raise InputError(f"does not hold label {label} any more")
        return box


def cut_label(label_map: LabelMap, label: int, picture: Picture | None) -> dict[str, Any]:
    """Return a label with MARGIN_MM around it, at most MAX_VOXELS along each axis, as plain values for the page.

    Args:
        label_map: holds the label.
        label: its id.
        picture: the image, if there is one.

    Returns:
        `size` and `mm` of the voxels along x, y, z (RAS); `start`, the largest section along each; `names` and
        `rejected` of the indices in the map, in which 1 is the label; `map` and `image`, the axial slices as tiles of a
        PNG and a WebP picture with `across` tiles in a row.

    Raises:
        InputError: the map does not hold the label.
    """
    box, spacing_mm = label_map.box(label), ras_spacing_mm(label_map.affine)
    ends = zip(box, label_map.ras.shape, spacing_mm, strict=True)
    ranges = [_view(own, length, mm) for own, length, mm in ends]
    sizes = [min(stop - start, MAX_VOXELS) for start, stop in ranges]
    steps = [(stop - start) / size for (start, stop), size in zip(ranges, sizes, strict=True)]
    places = [s + (np.arange(n) + 0.5) * step - 0.5 for (s, _), n, step in zip(ranges, sizes, steps, strict=True)]
    crop = label_map.ras[np.ix_(*(np.round(place).astype(int) for place in places))]
    start = best_slices((crop == label).astype(np.uint8))
    indices, names, ids = _indices(crop, label, label_map.organs)
    across = max(1, round((sizes[2] * sizes[1] / sizes[0]) ** 0.5))
    found = {
        "size": sizes,
        "mm": [float(mm * step) for mm, step in zip(spacing_mm, steps, strict=True)],
        "start": [start["sagittal"], start["coronal"], start["axial"]],
        "names": names,
        "rejected": [n for n, own in enumerate(ids) if own in label_map.rejected],
        "across": across,
        "map": _encoded(_tiles(indices, across), "PNG"),
        "image": None,
    }
    if picture is not None:
        affine, shape = label_map.affine, label_map.labels.shape
        to_mm = affine @ inv_ornt_aff(io_orientation(affine), shape)
        grid = to_mm @ np.diag([*steps, 1.0])
        grid[:3, 3] = apply_affine(to_mm, [place[0] for place in places])
        found["image"] = _encoded(_tiles(picture.sampled(grid, crop.shape), across), "WEBP", quality=QUALITY)
    return found


def _view(box: slice, length: int, spacing_mm: float) -> tuple[int, int]:
    """Return the range of an axis to show: the label with MARGIN_MM, at least MIN_HALF_MM around its centre."""
    middle, extent = (box.start + box.stop) / 2, box.stop - box.start
    half = max(extent * spacing_mm / 2 + MARGIN_MM, MIN_HALF_MM) / spacing_mm
    return max(0, int(middle - half)), min(length, int(np.ceil(middle + half)))


def _indices(crop: np.ndarray, label: int, organs: Mapping[int, str]) -> tuple[np.ndarray, list[str], list[int]]:
    """Replace label ids by indices of one byte, 1 for the label; those beyond 254 share the last."""
    ids = [0, label, *(int(found) for found in np.unique(crop) if found not in (0, label))]
    table = np.full(int(crop.max()) + 1, _OTHERS, dtype=np.uint8)
    table[ids[:_OTHERS]] = np.arange(len(ids[:_OTHERS]))
    names = [organs.get(own, str(own)) if own else "" for own in ids[:_OTHERS]]
    return table[crop], names, ids[:_OTHERS]


def _tiles(volume: np.ndarray, across: int) -> np.ndarray:
    """Arrange the slices (x, y) of a volume from left to right, top to bottom; rows are y."""
    x, y, z = volume.shape
    down = -(-z // across)
    padded = np.zeros((down * across, y, x), dtype=np.uint8)
    padded[:z] = volume.transpose(2, 1, 0)
    return padded.reshape(down, across, y, x).transpose(0, 2, 1, 3).reshape(down * y, across * x)


def _encoded(sheet: np.ndarray, kind: str, **options: Any) -> str:
    """Return a picture as a data URL, whose pixels a page opened from disk may read."""
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(file, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
