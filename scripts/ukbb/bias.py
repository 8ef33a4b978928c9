"""The slow change of brightness over a volume, which the receiving coils cause."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.ukbb.stitching import tissue

_SHRINK = 4
_ITERATIONS = (30, 30, 20)


def bias_field(in_phase: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the field that in-phase intensities are to be divided by, with a median of 1 in the tissue.

    N4 of SimpleITK (Tustison et al., IEEE TMI 29, 2010), fitted on every fourth voxel of the tissue, in one thread,
    because each worker processes a subject of its own.

    Args:
        in_phase: intensities, 0 in gaps.
        spacing_mm: voxel size.

    Shape:
        in_phase and the field: (X, Y, Z), float32.
    """
    import SimpleITK as sitk  # only with n4: half a second, and not everywhere installed

    image = sitk.GetImageFromArray(np.ascontiguousarray(in_phase.T, dtype=np.float32))
    image.SetSpacing([float(mm) for mm in spacing_mm])
    shown = tissue(in_phase)
    mask = sitk.GetImageFromArray(np.ascontiguousarray(shown.T, dtype=np.uint8))
    mask.SetSpacing(image.GetSpacing())
    factors = [min(_SHRINK, max(1, n // 16)) for n in in_phase.shape]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_ITERATIONS)
    n4.SetNumberOfThreads(1)
    n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(mask, factors))
    field = np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T).astype(np.float32)
    return field / np.median(field[shown])
