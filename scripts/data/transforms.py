"""Dictionary transforms for training and inference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.transforms import Spacingd as MonaiSpacingd

from scripts.common.label_maps import renumber


class Spacingd(MonaiSpacingd):
    """`monai.transforms.Spacingd` that passes on only its own keys.

    MONAI 1.6.1 takes every entry named `<key>_...` for a metadata dictionary, and fails on the string `image_path` that
    MONAI Label adds to each case.

    >>> from monai.data import MetaTensor
    >>> case = {"image": MetaTensor(torch.ones(1, 4, 4, 4), affine=torch.eye(4)), "image_path": "ct.nii.gz"}
    >>> Spacingd("image", pixdim=(2, 2, 2))(case)["image"].pixdim
    tensor([2., 2., 2.], dtype=torch.float64)
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample the keys of a case."""
        own = {key: data[key] for key in self.keys if key in data}
        return {**data, **super().__call__(own, lazy=lazy)}


class RandLeftRightFlipd(RandomizableTransform, MapTransform):
    """Randomly mirror a patient left to right, and swap the labels of paired organs.

    The published code does not swap the labels, so that the network learns right kidneys as left ones.

    Args:
        keys: keys to mirror, oriented so that spatial axis 0 runs left-right (RAS).
        label_key: the one of `keys` that holds class ids.
        pairs: pairs of class ids to swap; see `scripts.common.organs.left_right_pairs`.
        prob: probability that a case is mirrored.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Each key: (C, X, Y, Z), unchanged.

    >>> flip = RandLeftRightFlipd("label", pairs=[(2, 3)], prob=1.0)
    >>> flip({"label": torch.tensor([[[[2]], [[0]], [[3]], [[3]]]])})["label"].flatten()
    tensor([2, 2, 0, 3])
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        label_key: str = "label",
        pairs: Sequence[tuple[int, int]],
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key = label_key
        self.swapped = {label: other for a, b in pairs for label, other in ((a, b), (b, a))}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Mirror a case with probability `prob`."""
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        for key in self.key_iterator(d):
            values = self.swapped if key == self.label_key else {}
            d[key] = renumber(torch.flip(d[key], dims=[1]), values)
        return d
