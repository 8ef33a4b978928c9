"""Pseudo masks: regions of similar intensity, which stand in for labels that a volume does not have."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import cc3d
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor
from scipy.ndimage import binary_closing, binary_opening, find_objects, gaussian_filter
from torch.nn.functional import interpolate

from scripts.common.errors import InputError
from scripts.common.jit import compiled

OFFSETS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 1, -1))
"""Neighbours of a voxel (D, H, W): along each axis, and the two diagonals of a slice."""
SMOOTHING_VOXELS = 0.8
THRESHOLD_PERCENT = 25
MIN_REGION = 1000 / (32 * 256 * 256)  # of the voxels
MIN_SHARE = 0.001


def graph_regions(image: np.ndarray, *, min_voxels: int = 1000) -> np.ndarray:
    """Divide an image into regions of similar intensity.

    The image is smoothed (Gaussian, 0.8 voxels). Each voxel is joined to its neighbours of `OFFSETS` by an edge, whose
    weight is their difference. Regions grow along edges of at most the 25th percentile of the weights above 0; then,
    from the lowest weight to the highest, each edge joins two regions of which one has fewer than `min_voxels` voxels.

    Args:
        image: (D, H, W), intensities.
        min_voxels: size below which a region is joined to a neighbour.

    Returns:
        (D, H, W) int32, ids from 0.

    Source:
        Felzenszwalb and Huttenlocher, Efficient graph-based image segmentation (2004), as SegVol has it in 3-D: one
        threshold for all regions. Edges of equal weight are taken in the order of `OFFSETS`, then of the voxels.
    """
    if image.ndim != 3 or 0 in image.shape:
        raise InputError(f"image is {image.shape}: give a volume (D, H, W).")
    smooth = gaussian_filter(image.astype(np.float32), SMOOTHING_VOXELS)
    index = np.arange(smooth.size, dtype=np.int32).reshape(smooth.shape)
    pairs = [(_part(index, o), _part(index, o, other=True)) for o in OFFSETS]
    first, second = (np.concatenate([pair[end].ravel() for pair in pairs]) for end in (0, 1))
    weights = np.abs(smooth.ravel()[first] - smooth.ravel()[second])
    positive = weights[weights > 0]
    threshold = np.percentile(positive, THRESHOLD_PERCENT) if len(positive) else 0.0
    order = np.argsort(weights, kind="stable")
    roots = _grow(first[order], second[order], weights[order], smooth.size, np.float32(threshold), min_voxels)
    return np.unique(roots, return_inverse=True)[1].astype(np.int32).reshape(image.shape)


def _part(volume: np.ndarray, offset: Sequence[int], *, other: bool = False) -> np.ndarray:
    """Return the voxels that have a neighbour at `offset`, or these neighbours."""
    steps = [step if other else -step for step in offset]
    return volume[tuple(slice(max(0, step), min(n, n + step)) for step, n in zip(steps, volume.shape, strict=True))]


@compiled
def _grow(first, second, weights, n, threshold, min_voxels):
    """Return the root of each voxel; edges are sorted by weight."""
    parent = np.arange(n)
    size = np.ones(n, dtype=np.int64)
    for small in (False, True):
        for edge in range(len(first)):
            if not small and weights[edge] > threshold:
                break
            a, b = first[edge], second[edge]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a != b and (not small or min(size[a], size[b]) < min_voxels):
                if size[a] < size[b]:
                    a, b = b, a
                parent[b] = a
                size[a] += size[b]
    for voxel in range(n):
        root = voxel
        while parent[root] != root:
            root = parent[root]
        parent[voxel] = root
    return parent


def pseudo_mask(image: np.ndarray, label: np.ndarray | None = None, *, min_voxels: int = 1000) -> np.ndarray:
    """Return `graph_regions` with each class of a label as a region of its own, (D, H, W) int32, ids from 1."""
    regions = graph_regions(image, min_voxels=min_voxels) + 1
    first = int(regions.max()) + 1
    classes = [] if label is None else [one for one in np.unique(label) if one]
    for number, class_id in enumerate(classes):
        regions[label == class_id] = first + number
    return regions


def clean_pseudo_mask(ids: np.ndarray, *, min_share: float = MIN_SHARE) -> np.ndarray:
    """Smooth the regions of a crop and drop small ones.

    Each region is opened, then closed, by the 6 neighbours of a voxel; 6-connected components below `min_share` of the
    voxels are dropped.

    Args:
        ids: (D, H, W), region of each voxel, 0 for none.
        min_share: of the voxels of the crop.

    Returns:
        (D, H, W) int32; 0 where no region is left.
    """
    least = min_share * ids.size
    result = np.zeros(ids.shape, dtype=np.int32)
    for number, box in enumerate(find_objects(ids.astype(np.int32)), start=1):
        region = None if box is None else ids[box] == number
        if region is None or region.sum() < least:
            continue
        smooth = binary_closing(np.pad(binary_opening(region), 1))[1:-1, 1:-1, 1:-1] & region
        parts = cc3d.connected_components(smooth, connectivity=6)
        large = np.flatnonzero(np.bincount(parts.ravel()) >= least)
        result[box][np.isin(parts, large[large > 0])] = number
    return result


class PseudoMaskd(Transform):
    """Add `pseudo`, the pseudo mask of a case; not random, so that a dataset that keeps prepared cases keeps it.

    It is made on a grid of at most `size` voxels, to which image (means) and label (nearest) are resized, and put back
    to the grid of the image by nearest neighbour.

    Args:
        size: (D, H, W), at most.
        enabled: whether to add it.
        image_key: key of the image.
        label_key: key of the label, whose classes become regions; a case may lack it.

    Shape:
        image, label, pseudo: (1, D, H, W); pseudo is int16.
    """

    def __init__(
        self, *, size: Sequence[int], enabled: bool = True, image_key: str = "image", label_key: str = "label"
    ) -> None:
        self.size, self.enabled, self.image_key, self.label_key = tuple(size), enabled, image_key, label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the pseudo mask of a case."""
        if not self.enabled:
            return dict(data)
        image = convert_to_tensor(data[self.image_key]).float()
        shape = tuple(image.shape[1:])
        size = tuple(map(min, shape, self.size))
        small = interpolate(image[None], size, mode="area")[0, 0].numpy()
        label = None
        if self.label_key in data:
            label = convert_to_tensor(data[self.label_key]).float()
            label = interpolate(label[None], size, mode="nearest-exact")[0, 0].numpy()
        ids = pseudo_mask(small, label, min_voxels=max(1, round(MIN_REGION * small.size)))
        whole = interpolate(torch.from_numpy(ids)[None, None].float(), shape, mode="nearest-exact")[0].to(torch.int16)
        like = data[self.image_key]
        return {**data, "pseudo": MetaTensor(whole, meta=like.meta) if isinstance(like, MetaTensor) else whole}


class CleanPseudoMaskd(MapTransform):
    """Apply `clean_pseudo_mask` to pseudo masks (1, D, H, W) of crops."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the pseudo masks of a crop."""
        d = dict(data)
        for key in self.key_iterator(d):
            ids = convert_to_tensor(d[key]).numpy()[0]
            d[key] = torch.from_numpy(clean_pseudo_mask(ids)[None])
        return d
