"""What a label's shape does not say: its other side, and where in the body it lies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from scripts.labels import partners


def with_anatomy(shapes: pd.DataFrame, organs: Mapping[int, str]) -> pd.DataFrame:
    """Add symmetry and position to the shape features of one case.

    Args:
        shapes: the table of `scripts.solf.features.label_shape_features`.
        organs: label id to name; partners differ in `left` and `right`.

    Returns:
        The table with `asymmetry`, the logarithm of the organ's volume over that of its partner on the other side
        (NaN without a partner), and `offset_x`, `offset_y` and `offset_z`, from the body's centroid to the organ's
        along the patient's axes, in units of the cube root of the body's volume. The body is all labels.

    Source:
        Ours: UKBOB (arXiv 2504.06908) judges by shape alone, which sees neither swapped nor displaced organs.
    """
    volumes = shapes.set_index("label")["volume_mm3"]
    partner_mm3 = shapes["label"].map(partners(organs)).map(volumes)
    asymmetry = np.log(shapes["volume_mm3"] / partner_mm3.astype(float))
    centroids_mm = shapes[[f"centroid_{axis}_mm" for axis in "xyz"]].to_numpy()
    voxels = shapes["voxel_count"].to_numpy()[:, None]
    body_mm = (centroids_mm * voxels).sum(axis=0) / max(voxels.sum(), 1)
    offsets = (centroids_mm - body_mm) / max(np.cbrt(shapes["volume_mm3"].sum()), 1e-6)
    return shapes.assign(asymmetry=asymmetry, **{f"offset_{axis}": offsets[:, n] for n, axis in enumerate("xyz")})
