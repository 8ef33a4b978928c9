"""Shape features of every label of a map, in one pass and by the definitions of IBSI."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np

from scripts.common.errors import InputError
from scripts.solf.marching_cubes import area_table, euler_table, volume_table
from scripts.solf.runs import LabelCounts, count_labels

if TYPE_CHECKING:
    import pandas as pd

MAX_LABEL = np.iinfo(np.uint16).max
MAX_SHEAR_DEGREES = 0.1  # float32 headers and quaternions leave less than a thousandth of it
_WORLD = ("x", "y", "z")
_VOXEL = ("i", "j", "k")


def label_shape_features(label: np.ndarray, affine: np.ndarray) -> pd.DataFrame:
    """Return the `shape_columns` of a label map as a table.

    >>> label = np.zeros((9, 9, 9), np.uint8)
    >>> label[2:6, 3:5, 4:8] = 7
    >>> label_shape_features(label, np.diag([2.0, 2.0, 3.0, 1.0]))[["label", "volume_mm3", "components"]]
       label  volume_mm3  components
    0      7       384.0           1
    """
    import pandas as pd  # here, as programs that clean a label map may lack it

    return pd.DataFrame(shape_columns(label, affine))


def shape_columns(label: np.ndarray, affine: np.ndarray) -> dict[str, np.ndarray]:
    """Measure the shape of every label but the background 0; see `shapes_and_contacts`."""
    return shapes_and_contacts(label, affine)[0]


def shapes_and_contacts(label: np.ndarray, affine: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Measure the shape of every label but the background 0, and which labels touch.

    Args:
        label: label ids from 0 to 65535 of any integer type; types wider than 16 bits are copied, and so are arrays
            with gaps or reversed axes.
        affine: voxel indices to mm; may be oblique, mirrored and anisotropic.

    Returns:
        Columns with an entry per label, by ascending label; empty ones for an empty map. They are
        `label`; `voxel_count`; `volume_mm3`, the voxels' volume; `mesh_volume_mm3` and `surface_area_mm2`, of the
        marching-cubes mesh at 0.5 with zeros around the map; `sphericity`, pi^(1/3) (6 V)^(2/3) / A of that mesh;
        `eccentricity`, sqrt(1 - least / major) of the eigenvalues of the voxel positions' covariance; `elongation` and
        `flatness`, sqrt(minor / major) and sqrt(least / major); `major_axis_mm`, `minor_axis_mm` and `least_axis_mm`,
        4 sqrt(eigenvalue); `centroid_x_mm` to `centroid_z_mm`; the bounding box as slices of the array, `i_start` to
        `k_stop`; `touches_border`, of the map; `components` that do not touch each other by face, edge or corner;
        `euler_number`, components less tunnels plus cavities (what is not of the label and closed in by it, by steps
        over faces): 1 for a solid organ; `normalized_volume`, `volume_mm3` over that of the body, the union of all
        labels; `fov_x_min_mm` to `fov_z_max_mm`, the box around the map's voxel centres along the patient's axes, the
        same for all labels.
        A label of one voxel has axes of 0 mm, and no `eccentricity`, `elongation` and `flatness` (NaN).
        Then whether labels touch by face, edge or corner; see `scripts.solf.runs.LabelCounts`.

    Shape:
        label: (I, J, K). affine: (4, 4). Contacts: (N, N).

    Raises:
        InputError: the map is not three-dimensional or not of whole numbers from 0 to 65535; the affine is not finite,
            singular or sheared.

    Source:
        IBSI reference manual (arXiv 1612.07003), section 3.1, whose covariance divides by the voxels less one; UKBOB
        (arXiv 2504.06908) for normalized volume and eccentricity. UKBOB does not say which volume its sphericity
        takes: here it is the mesh's, as in IBSI, since the voxels' with the mesh's area can exceed 1.
    """
    volume = _unsigned(np.asarray(label))
    axes_mm, origin_mm = _grid(np.asarray(affine, dtype=float))
    counts = count_labels(volume)
    columns = {"label": counts.labels, "voxel_count": counts.voxels}
    columns |= _surface(counts, axes_mm=axes_mm)
    columns |= _axes(counts, axes_mm=axes_mm, origin_mm=origin_mm)
    columns |= _box(counts, shape=volume.shape)
    columns |= {"components": counts.components, "euler_number": counts.cells @ euler_table() // 8}
    columns |= {"normalized_volume": counts.voxels / counts.voxels.sum()}
    columns |= _field_of_view(counts, shape=volume.shape, axes_mm=axes_mm, origin_mm=origin_mm)
    return columns, counts.touching


def compile_features() -> None:
    """Compile the code that measures label maps into numba's cache, before many processes need it."""
    for dtype in (np.uint8, np.uint16):
        shape_columns(np.ones((2, 2, 2), dtype), np.eye(4))


def _unsigned(label: np.ndarray) -> np.ndarray:
    """Return the map as uint8 or uint16, without a copy where its type has as many bits."""
    if label.ndim != 3:
        raise InputError(f"the label map has shape {label.shape}: give three dimensions.")
    if label.dtype.kind not in "biu":
        raise InputError(f"the label map has values of type {label.dtype}: give integers; save labels without scaling.")
    if label.dtype.kind == "i" and label.min(initial=0) < 0:
        raise InputError(f"the label map holds {label.min()}: labels start at 0; remap it.")
    if label.dtype.itemsize > 2 and label.max(initial=0) > MAX_LABEL:
        raise InputError(f"the label map holds {label.max()}: labels end at {MAX_LABEL}; remap it.")
    if label.dtype.itemsize > 2 or not label.dtype.isnative:
        return label.astype(np.uint16)
    return label.view(np.uint8 if label.dtype.itemsize == 1 else np.uint16)


def _grid(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps from voxel to voxel as columns, (3, 3), and the first voxel's centre, (3,), in mm."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(f"the affine is {affine.tolist()}: give 4 x 4 finite numbers.")
    axes_mm = affine[:3, :3]
    spacing_mm = np.linalg.norm(axes_mm, axis=0)
    directions = axes_mm / np.where(spacing_mm > 0, spacing_mm, 1)
    if abs(np.linalg.det(directions)) < 1e-6:
        raise InputError(f"the affine {axes_mm.tolist()} is singular: give three axes that span the space.")
    for one, other in combinations(range(3), 2):
        degrees = np.degrees(np.arccos(np.clip(directions[:, one] @ directions[:, other], -1, 1)))
        if abs(degrees - 90) > MAX_SHEAR_DEGREES:
            raise InputError(
                f"the affine is sheared: axes {one} and {other} meet at {degrees:.2f} degrees; "
                "resample the map onto a grid with right angles."
            )
    return axes_mm, affine[:3, 3]


def _surface(counts: LabelCounts, *, axes_mm: np.ndarray) -> dict[str, np.ndarray]:
    voxel_mm3 = abs(np.linalg.det(axes_mm))
    mesh_mm3 = counts.cells @ volume_table() * voxel_mm3
    area_mm2 = counts.cells @ area_table(axes_mm)
    return {
        "volume_mm3": counts.voxels * voxel_mm3,
        "mesh_volume_mm3": mesh_mm3,
        "surface_area_mm2": area_mm2,
        "sphericity": np.cbrt(np.pi * (6 * mesh_mm3) ** 2) / area_mm2,
    }


def _axes(counts: LabelCounts, *, axes_mm: np.ndarray, origin_mm: np.ndarray) -> dict[str, np.ndarray]:
    covariance_mm2 = axes_mm @ _covariance(counts) @ axes_mm.T
    least, minor, major = np.linalg.eigvalsh(covariance_mm2).clip(min=0).T
    with np.errstate(invalid="ignore"):  # one voxel: 0 / 0 is the NaN that the docstring promises
        ratios = {
            "eccentricity": np.sqrt(1 - least / major),
            "elongation": np.sqrt(minor / major),
            "flatness": np.sqrt(least / major),
        }
    lengths = {"major_axis_mm": major, "minor_axis_mm": minor, "least_axis_mm": least}
    centroids_mm = counts.first / counts.voxels[:, None] @ axes_mm.T + origin_mm
    centroid = {f"centroid_{name}_mm": centroids_mm[:, axis] for axis, name in enumerate(_WORLD)}
    return ratios | {name: 4 * np.sqrt(eigenvalue) for name, eigenvalue in lengths.items()} | centroid


def _covariance(counts: LabelCounts) -> np.ndarray:
    """Return the covariances of voxel indices, (N, 3, 3); a single voxel's is 0.

    The moments are first taken about the box's corner, in integers, so that no digits cancel far from the origin.
    """
    corner, n = counts.boxes[:, :, 0], counts.voxels[:, None]
    mixed = _outer(corner, counts.first)
    second = counts.second - mixed - mixed.transpose(0, 2, 1) + _outer(corner, n * corner)
    first = counts.first - n * corner
    return (second - _outer(first, first / n)) / np.maximum(n - 1, 1)[:, None]


def _outer(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return one[:, :, None] * other[:, None, :]


def _box(counts: LabelCounts, *, shape: Sequence[int]) -> dict[str, np.ndarray]:
    boxes = counts.boxes
    columns = {f"{name}_start": boxes[:, axis, 0] for axis, name in enumerate(_VOXEL)}
    columns |= {f"{name}_stop": boxes[:, axis, 1] for axis, name in enumerate(_VOXEL)}
    columns["touches_border"] = ((boxes[:, :, 0] == 0) | (boxes[:, :, 1] == shape)).any(axis=1)
    return columns


def _field_of_view(
    counts: LabelCounts, *, shape: Sequence[int], axes_mm: np.ndarray, origin_mm: np.ndarray
) -> dict[str, np.ndarray]:
    corners = np.array(list(product(*[(0, n - 1) for n in shape])))
    corners_mm = corners @ axes_mm.T + origin_mm
    ends_mm = {"min": corners_mm.min(axis=0), "max": corners_mm.max(axis=0)}
    return {
        f"fov_{name}_{end}_mm": np.full(len(counts.labels), mm[axis])
        for axis, name in enumerate(_WORLD)
        for end, mm in ends_mm.items()
    }
