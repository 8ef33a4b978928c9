"""Signs that the orientation of a torso image, its affine or the kind of its intensities is wrong; for warnings.

Every sign is a rule about adults lying on their back; each says nothing where it cannot tell. No sign tells left from
right in MRI. `benchmarks/orientation_gate.py` measures what is found.
"""

from __future__ import annotations

from typing import Literal

import nibabel as nib
import numpy as np
from scipy import ndimage

Kind = Literal["HU", "MR", "normalized", "unknown"]
KINDS: tuple[Kind, ...] = ("HU", "MR", "normalized", "unknown")
_AIR_HU, _BONE_HU, _LIVER_HU, _NOISE_HU = -300, 250, (20, 200), 30
_LIVER_ML, _LIVER_MM, _LIVER_LEAD = 300, 25, 1.5  # least size, distance from the middle, and size against the next
_WIDER = 1.1  # than deep
_CUT = 0.05  # share of a face that lies in the body
_LUNG_SHARE, _LUNG_LEAD = 0.03, 3.0
_FLAT_LEAD, _BONE_MM = 1.3, 8.0
_OBLIQUE_DEG = 30.0
_WORKING_MM = 4.0


def implausible(volume: np.ndarray, affine: np.ndarray, *, kind: Kind | None = None) -> list[str]:
    """Return the signs that something is wrong with an image of the torso, as text; none if nothing is seen.

    Args:
        volume: intensities, of the fat-and-water image if there are several contrasts.
        affine: (4, 4), voxel index to mm in RAS.
        kind: of intensities that is expected; None for any.

    Shape:
        volume: (X, Y, Z).
    """
    signs = affine_signs(affine)
    found = intensity_kind(volume)
    if kind not in (None, found):
        signs.append(f"intensities look like {found}, expected {kind}")
    return signs + orientation_signs(volume, affine)


def affine_signs(affine: np.ndarray) -> list[str]:
    """Return what is unusual in an affine."""
    signs = []
    if np.allclose(np.abs(affine), np.eye(4)):
        signs.append("voxels of 1 x 1 x 1 mm with the origin in the first: the affine was probably lost")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    angle_deg = float(np.rad2deg(np.arccos(np.clip(np.abs(axes).max(axis=0).min(), 0, 1))))
    if angle_deg > _OBLIQUE_DEG:
        signs.append(f"its axes are turned by {angle_deg:.0f} degrees against the body")
    return signs


def intensity_kind(volume: np.ndarray) -> Kind:
    """Return what kind of intensities an image has, by their range."""
    low, middle, high = np.percentile(volume[::2, ::2, ::2], [1, 50, 99])
    if max(abs(low), abs(high)) <= 20:
        return "normalized" if high > low else "unknown"
    if low < -500 and high < 4000:
        return "HU"
    return "MR" if low > -0.1 * high and middle >= low else "unknown"


def orientation_signs(volume: np.ndarray, affine: np.ndarray) -> list[str]:
    """Return the signs that an image of the torso is not oriented as its affine says.

    - The body is cut by both ends of the field of view along head-feet, not along the other axes.
    - It is wider than deep.
    - Lungs lie above: more of the body is dark near the head.
    - The back is flatter than the front; in CT the bones lie behind the middle.
    - In CT the liver, the largest homogeneous mass, lies on the right.
    """
    turn = nib.orientations.io_orientation(affine)
    image = nib.orientations.apply_orientation(volume, turn)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    steps = [max(1, round(_WORKING_MM / mm)) for mm in spacing_mm]
    image, spacing_mm = image[tuple(slice(None, None, step) for step in steps)], spacing_mm * steps
    is_ct = intensity_kind(image) == "HU"
    tissue = tissue_of(image, is_ct=is_ct)
    body = filled(tissue)
    if not body.any():
        return ["shows no body"]
    if signs := _axis_signs(body, spacing_mm):
        return signs  # the others would be read along wrong axes
    signs = [_up_sign(tissue, body), _back_sign(body, spacing_mm)]
    if is_ct:
        signs += [_bone_sign(image, body, spacing_mm), _liver_sign(image, body, spacing_mm)]
    return list(dict.fromkeys(filter(None, signs)))


def tissue_of(image: np.ndarray, *, is_ct: bool) -> np.ndarray:
    """Return what is brighter than air, without small parts."""
    low, high = np.percentile(image, [1, 99])
    bright = ndimage.binary_opening(image > (_AIR_HU if is_ct else low + 0.1 * (high - low)))
    parts, _ = ndimage.label(bright)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes > 0.2 * sizes.max())[parts] & bright


def filled(tissue: np.ndarray) -> np.ndarray:
    """Fill holes in the planes of each axis, because lungs are open at the ends of a volume."""
    body = tissue.copy()
    for axis in range(3):
        for plane, into in zip(np.moveaxis(tissue, axis, 0), np.moveaxis(body, axis, 0), strict=True):
            into |= ndimage.binary_fill_holes(plane)
    return body


def _axis_signs(body: np.ndarray, spacing_mm: np.ndarray) -> list[str]:
    cut = [min(np.take(body, end, axis=axis).mean() for end in (0, -1)) for axis in range(3)]
    ends_at = int(np.argmax(cut))
    if cut[ends_at] > _CUT and ends_at != 2:
        return [f"the body goes on beyond both ends of axis {'XYZ'[ends_at]}, which should be head-feet"]
    wide, deep = (np.ptp(np.flatnonzero(body.any(axis=(1 - a, 2)))) * spacing_mm[a] for a in (0, 1))
    if deep > _WIDER * wide:
        return [f"the body is {deep:.0f} mm deep and {wide:.0f} mm wide: front-back and left-right may be exchanged"]
    return []


def _up_sign(tissue: np.ndarray, body: np.ndarray) -> str:
    third = max(1, body.shape[2] // 3)
    dark = body & ~tissue
    low, high = (dark[..., part].sum() / max(1, body[..., part].sum()) for part in (np.s_[:third], np.s_[-third:]))
    upside_down = low > _LUNG_SHARE and low > _LUNG_LEAD * high
    return "lungs seem to lie at the lower end: head and feet may be exchanged" if upside_down else ""


def _back_sign(body: np.ndarray, spacing_mm: np.ndarray) -> str:
    """Compare how even the surfaces are in the middle three fifths of the width of each slice."""
    evenness: tuple[list[float], list[float]] = ([], [])
    for z in range(body.shape[2]):
        where = np.flatnonzero(body[..., z].any(axis=1))
        if where.size >= 10:
            middle = body[where[where.size // 5] : where[-(where.size // 5)], :, z]
            middle = middle[middle.any(axis=1)]
            for values, plane in zip(evenness, (middle, middle[:, ::-1]), strict=True):
                values.append(float(plane.argmax(axis=1).std() * spacing_mm[1]))
    if not evenness[0]:
        return ""
    behind, ahead = (float(np.median(values)) for values in evenness)
    return "the front is flatter than the back: they may be exchanged" if behind > _FLAT_LEAD * ahead else ""


def _bone_sign(image: np.ndarray, body: np.ndarray, spacing_mm: np.ndarray) -> str:
    bone = body & (image > _BONE_HU)
    if not bone.any():
        return ""
    ahead_mm = (np.nonzero(bone)[1].mean() - np.nonzero(body)[1].mean()) * spacing_mm[1]
    return "bones lie in front of the middle: front and back may be exchanged" if ahead_mm > _BONE_MM else ""


def _liver_sign(image: np.ndarray, body: np.ndarray, spacing_mm: np.ndarray) -> str:
    size = [max(3, round(12 / mm)) for mm in spacing_mm]
    values = image.astype(np.float64)
    mean = ndimage.uniform_filter(values, size)
    spread = np.sqrt(np.clip(ndimage.uniform_filter(values**2, size) - mean**2, 0, None))
    even = body & (mean > _LIVER_HU[0]) & (mean < _LIVER_HU[1]) & (spread < _NOISE_HU)
    parts, _ = ndimage.label(even)
    sizes_ml = np.bincount(parts.ravel(), minlength=3)[1:] * spacing_mm.prod() / 1e3
    second, first = np.sort(sizes_ml)[-2:]
    if first < max(_LIVER_ML, _LIVER_LEAD * second):
        return ""
    liver = parts == np.argmax(sizes_ml) + 1
    right_mm = (np.nonzero(liver)[0].mean() - np.nonzero(body)[0].mean()) * spacing_mm[0]
    return "the liver seems to lie on the left: the image may be mirrored" if right_mm < -_LIVER_MM else ""
