"""The frames of an image on its own grid, as rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.common.errors import InputError
from scripts.common.grids import GridArray
from scripts.io.pictures import tells_pixel_size

_AXES = nib.orientations.axcodes2ornt("PLS")


def frames_of(volume: GridArray) -> np.ndarray:
    """Return the frames of an image: (X, Y, Z) of any orientation becomes (Z, H, W), as it is shown.

    >>> from scripts.io.pictures import PICTURE_AFFINE
    >>> frames_of(GridArray(np.zeros((4, 3, 2)), PICTURE_AFFINE)).shape
    (2, 3, 4)
    """
    change = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), _AXES)
    return np.moveaxis(nib.orientations.apply_orientation(volume.array, change), -1, 0)


def pixel_size_mm(
    volume: GridArray, given_mm: Sequence[float] | None, *, source: str | Path
) -> tuple[float, float] | None:
    """Return height and width of a pixel: those given, else those of the file; None of one that tells none.

    Args:
        volume: on the grid of the file.
        given_mm: height and width, or None.
        source: the file, such as a picture, which tells none.

    Raises:
        InputError: what is given is not two numbers above 0.
    """
    if given_mm is not None:
        if len(given_mm) != 2 or not np.isfinite(given_mm).all() or min(given_mm) <= 0:
            raise InputError(f"pixel_mm is {list(given_mm)}: give height and width of a pixel, above 0 mm.")
        return float(given_mm[0]), float(given_mm[1])
    if not tells_pixel_size(source):
        return None
    sides_mm = np.linalg.norm(volume.affine[:3, :3], axis=0)
    orientation = nib.io_orientation(volume.affine)[:, 0]
    return tuple(float(sides_mm[orientation == axis][0]) for axis in (1, 0))
