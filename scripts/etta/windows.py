"""The windows of a sliding-window inferer: where they lie, and which of them to adapt to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch.nn.functional import pad

Window = tuple[slice, ...]

# Of the windows of the plain pass: three looks at them, besides the pass itself, keep the case below twice its time.
REFERENCE_SHARE = 0.2


@dataclass(frozen=True)
class Grid:
    """How an inferer cuts an image.

    Attributes:
        roi_size: voxels of a window along each axis; where not positive, the image's.
        overlap: share of a window that its neighbour covers too, along each axis.
        padding_mode: of an image smaller than a window, as in `torch.nn.functional.pad`.
        cval: value of constant padding.
    """

    roi_size: tuple[int, ...]
    overlap: tuple[float, ...]
    padding_mode: str = "constant"
    cval: float = 0.0

    @classmethod
    def of(cls, inferer: Any, spatial_size: Sequence[int]) -> Grid:
        """Read the grid from a sliding-window inferer; any other sees the image as one window.

        Args:
            inferer: a MONAI inferer.
            spatial_size: of the image, in voxels.

        Raises:
            ValueError: the inferer passes coordinates to the network, which windows taken alone do not have.
        """
        if getattr(inferer, "with_coord", False):
            raise ValueError("the inferer has with_coord=True: set it to False, or leave test-time adaptation out.")
        n = len(spatial_size)
        roi_size = fall_back_tuple(getattr(inferer, "roi_size", -1), spatial_size)
        overlap = ensure_tuple_rep(getattr(inferer, "overlap", 0.0), n)
        mode = str(getattr(inferer, "padding_mode", "constant")).rpartition(".")[2].lower()
        return cls(tuple(roi_size), tuple(overlap), mode, float(getattr(inferer, "cval", 0.0)))

    def padded(self, image: torch.Tensor) -> torch.Tensor:
        """Pad an image that is smaller than a window, half on each side, as the inferer does.

        Shape:
            (1, C, ...) stays, with at least `roi_size` voxels along each axis.
        """
        lacking = [max(0, r - s) for r, s in zip(self.roi_size, image.shape[2:], strict=True)]
        if not any(lacking):
            return image
        sides = [side for n in reversed(lacking) for side in (n // 2, n - n // 2)]
        value = self.cval if self.padding_mode == "constant" else None
        return pad(image, sides, mode=self.padding_mode, value=value)

    def windows(self, spatial_size: Sequence[int], *, overlapping: bool = True) -> list[Window]:
        """List the windows of a padded image.

        Args:
            spatial_size: of the padded image, in voxels.
            overlapping: as the inferer takes them; False: side by side, each voxel once but at the far ends.
        """
        overlap = self.overlap if overlapping else (0.0,) * len(self.overlap)
        # As monai.inferers.utils: a window that spans its axis is not moved along it.
        step = [
            r if r == s else max(1, int(r * (1 - o)))
            for r, s, o in zip(self.roi_size, spatial_size, overlap, strict=True)
        ]
        return list(dense_patch_slices(spatial_size, self.roi_size, step))


def reference_windows(grid: Grid, image: torch.Tensor) -> list[Window]:
    """Choose the windows that stand for the whole image before and after adaptation.

    They lie side by side. Where that are more than a fifth of the inferer's own windows, those with the least
    variation of intensity, which is air and fat, are left out.

    Args:
        grid: how the inferer cuts.
        image: padded, (1, C, ...).

    Returns:
        At least one window.
    """
    size = image.shape[2:]
    beside = grid.windows(size, overlapping=False)
    most = max(4, int(REFERENCE_SHARE * len(grid.windows(size))))
    if len(beside) <= most:
        return beside
    spread = np.array([float(image[(..., *window)].float().std()) for window in beside])
    kept = np.sort(np.argsort(-spread, kind="stable")[:most])
    return [beside[index] for index in kept]


def choose(
    entropy: Sequence[float], foreground: Sequence[float], *, count: int, generator: np.random.Generator
) -> list[int]:
    """Draw the windows of one step: those with foreground first, one from each stratum of uncertainty.

    Args:
        entropy: mean entropy of each window.
        foreground: predicted share of foreground of each window, 0 to 1.
        count: windows wanted.
        generator: the only source of chance.

    Returns:
        At most `count` distinct indices; the first is from the most uncertain windows.
    """
    order = sorted(range(len(entropy)), key=lambda i: (foreground[i] <= 0, -entropy[i], i))
    n_foreground = sum(share > 0 for share in foreground)
    pool = order[: max(count, n_foreground)]
    strata = np.array_split(np.array(pool), min(count, len(pool)))
    return [int(generator.choice(stratum)) for stratum in strata]
