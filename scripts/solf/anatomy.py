"""Features beyond shape: left-right asymmetry and the position of an organ in the body."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scripts.common.organs import contralateral_labels


def anatomy_columns(shapes: Mapping[str, np.ndarray], organs: Mapping[int, str]) -> dict[str, np.ndarray]:
    """Return symmetry and position of the labels of one case.

    Args:
        shapes: columns of `scripts.solf.features.shape_columns`.
        organs: label id to name; the names of contralateral organs differ in `left` and `right`.

    Returns:
        `asymmetry`, the logarithm of the organ's volume over that of the contralateral organ (NaN without one), and
        `offset_x`, `offset_y` and `offset_z`, from the body's centroid to the organ's along the patient's axes, in
        units of the cube root of the body's volume. The body is the union of all labels: what is missing or wrong in
        one label moves the offsets of all; `scripts.solf.reference` has positions that stay.

    Source:
        Ours: UKBOB (arXiv 2504.06908) uses shape alone, which shows neither swapped nor displaced organs.
    """
    labels, volumes = np.asarray(shapes["label"]), np.asarray(shapes["volume_mm3"], dtype=float)
    volume_of = dict(zip(labels.tolist(), volumes.tolist(), strict=True))
    others = contralateral_labels(organs)
    contralateral_mm3 = np.array([volume_of.get(others.get(label), np.nan) for label in labels.tolist()], dtype=float)
    centroids_mm = np.stack([np.asarray(shapes[f"centroid_{axis}_mm"], dtype=float) for axis in "xyz"], axis=1)
    voxels = np.asarray(shapes["voxel_count"])[:, None]
    body_mm = (centroids_mm * voxels).sum(axis=0) / max(voxels.sum(), 1)
    offsets = (centroids_mm - body_mm) / max(np.cbrt(volumes.sum()), 1e-6)
    asymmetry = np.log(volumes / contralateral_mm3)
    return {"asymmetry": asymmetry, **{f"offset_{axis}": offsets[:, n] for n, axis in enumerate("xyz")}}
