"""The windows of a sliding-window inferer, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data.utils import dense_patch_slices
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch.nn.functional import pad

Window = tuple[slice, ...]


@dataclass(frozen=True)
class WindowLayout:
    """How an inferer divides an image into windows.

    Attributes:
        roi_size: voxels of a window along each axis.
        overlap: share of a window that its neighbour covers too, along each axis.
        padding_mode: of an image smaller than a window, as in `torch.nn.functional.pad`.
        cval: value of constant padding.
    """

    roi_size: tuple[int, ...]
    overlap: tuple[float, ...]
    padding_mode: str = "constant"
    cval: float = 0.0

    @classmethod
    def of(cls, inferer: Any, spatial_size: Sequence[int]) -> WindowLayout:
        """Read the layout of a sliding-window inferer; for any other inferer the image is one window.

        Args:
            inferer: a MONAI inferer; where its `roi_size` is not positive, the image's size counts.
            spatial_size: of the image, in voxels.
        """
        n = len(spatial_size)
        roi_size = fall_back_tuple(getattr(inferer, "roi_size", -1), spatial_size)
        overlap = ensure_tuple_rep(getattr(inferer, "overlap", 0.0), n)
        mode = str(getattr(inferer, "padding_mode", "constant")).rpartition(".")[2].lower()
        return cls(tuple(roi_size), tuple(overlap), mode, float(getattr(inferer, "cval", 0.0)))

    def padded(self, image: torch.Tensor) -> torch.Tensor:
        """Pad an image that is smaller than a window, half on each side, as the inferer does.

        Shape:
            (1, C, ...) keeps its channels and gets at least `roi_size` voxels along each axis.
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
            overlapping: as the inferer's; False: side by side, so that each voxel is in one window, but for those in
                the last windows, which end at the border.
        """
        overlap = self.overlap if overlapping else (0.0,) * len(self.overlap)
        # As in monai.inferers.utils: a window that spans its axis is not moved along it.
        step = [
            r if r == s else max(1, int(r * (1 - o)))
            for r, s, o in zip(self.roi_size, spatial_size, overlap, strict=True)
        ]
        return list(dense_patch_slices(spatial_size, self.roi_size, step))
