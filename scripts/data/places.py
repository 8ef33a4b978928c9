"""Places of foreground and background, which crops are centred on.

A module of its own: a store is prepared again when the code of its transforms changes, and crops are not part of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from monai.utils import convert_to_tensor

from scripts.common.errors import InputError

PLACES = "places"
MAX_PLACES = 2000
Places = Mapping[str, Any]
"""`classes`: class id, 0 for background, to its number of voxels and a range of `at`, flat indices of some of them.

One tensor, because reading many takes longer than reading a crop.
"""


class ForegroundPlacesd(Transform):
    """List voxels of each class, and of the background inside of the body, for `scripts.data.crops.RandCropByPlacesd`.

    It is not random, so that every dataset that keeps prepared cases keeps the list with them: a crop then needs no
    look at the whole label. Of a class with more voxels, `MAX_PLACES` are drawn, the same ones every time. The voxels
    of `ignored_label`, if the item has one, are in no list.

    Args:
        label_key: key of the label.
        image_key: key of the image; background is where the label is 0 and a channel above `image_threshold`.
        image_threshold: in the unit of the image.

    Shape:
        label: (1, X, Y, Z), class ids. Image: (C, X, Y, Z).

    >>> case = {"image": torch.ones(1, 1, 1, 4), "label": torch.tensor([[[[0, 2, 0, 2]]]])}
    >>> ForegroundPlacesd()(case)["places"]
    {'classes': {0: (2, 0, 2), 2: (2, 2, 4)}, 'at': tensor([0, 2, 1, 3], dtype=torch.int32)}
    """

    def __init__(self, *, label_key: str = "label", image_key: str = "image", image_threshold: float = 0.0) -> None:
        self.label_key, self.image_key, self.image_threshold = label_key, image_key, image_threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the places of a case."""
        label, image = (convert_to_tensor(data[key]).cpu().numpy() for key in (self.label_key, self.image_key))
        if label.shape != (1, *image.shape[1:]):
            raise InputError(f"label is {label.shape}, image {image.shape}: give class ids (1, X, Y, Z) on its grid.")
        rng = np.random.default_rng(0)
        foreground = np.flatnonzero(label)
        ids = label.reshape(-1)[foreground]
        ids = ids.astype(np.min_scalar_type(int(ids.max(initial=0))))
        foreground = foreground[np.argsort(ids, kind="stable")]
        classes, counts = np.unique(ids, return_counts=True)
        lists = dict(zip(classes.tolist(), np.split(foreground, np.cumsum(counts))[:-1], strict=True))
        lists.pop(data.get("ignored_label"), None)
        body = (image > self.image_threshold).any(axis=0)
        lists = {0: np.flatnonzero((label[0] == 0) & body), **lists}
        kept = [_some(at, rng) for at in lists.values()]
        ends = np.cumsum([0, *map(len, kept)]).tolist()
        ranges = zip(lists.items(), ends[:-1], ends[1:], strict=True)
        places = {key: (len(at), first, end) for (key, at), first, end in ranges if len(at)}
        return {**data, PLACES: {"classes": places, "at": torch.from_numpy(np.concatenate(kept).astype(np.int32))}}


def _some(at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return at most `MAX_PLACES` of the indices, ascending."""
    if len(at) <= MAX_PLACES:
        return at
    return at[np.sort(rng.choice(len(at), MAX_PLACES, replace=False, shuffle=False))]
