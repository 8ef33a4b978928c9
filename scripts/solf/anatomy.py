"""Features beyond shape: left-right asymmetry and the position of an organ in the body."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from scripts.common.organs import contralateral_labels


def with_anatomy(shapes: pd.DataFrame, organs: Mapping[int, str]) -> pd.DataFrame:
    """Add symmetry and position to the shape features of one case.

    Args:
        shapes: the table of `scripts.solf.features.label_shape_features`.
        organs: label id to name; the names of contralateral organs differ in `left` and `right`.

    Returns:
        The table with `asymmetry`, the logarithm of the organ's volume over that of the contralateral organ (NaN
        without one), and `offset_x`, `offset_y` and `offset_z`, from the body's centroid to the organ's along the
        patient's axes, in units of the cube root of the body's volume. The body is the union of all labels.

    Source:
        Ours: UKBOB (arXiv 2504.06908) uses shape alone, which shows neither swapped nor displaced organs.
    """
    volumes = shapes.set_index("label")["volume_mm3"]
    contralateral_mm3 = shapes["label"].map(contralateral_labels(organs)).map(volumes)
    asymmetry = np.log(shapes["volume_mm3"] / contralateral_mm3.astype(float))
    centroids_mm = shapes[[f"centroid_{axis}_mm" for axis in "xyz"]].to_numpy()
    voxels = shapes["voxel_count"].to_numpy()[:, None]
    body_mm = (centroids_mm * voxels).sum(axis=0) / max(voxels.sum(), 1)
    offsets = (centroids_mm - body_mm) / max(np.cbrt(shapes["volume_mm3"].sum()), 1e-6)
    return shapes.assign(asymmetry=asymmetry, **{f"offset_{axis}": offsets[:, n] for n, axis in enumerate("xyz")})
