"""Dictionary transforms for training and inference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.transforms import Spacingd as MonaiSpacingd

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.common.label_maps import renumber
from scripts.data.case_checks import LabelSet, label_problems
from scripts.data.plausibility import KINDS, Kind, implausible
from scripts.io.nifti import StoredVolume

logger = logging.getLogger(__name__)


class CheckLabeld(MapTransform):
    """Refuse a label that is not one of its image or holds other values than the classes; warn if it is all background.

    Apply it right behind the transform that reads both. `scripts.data.case_checks.check_cases` refuses the same labels,
    with the same words, before a training starts. An item may give `ignored_label`, a value that its label may hold
    too, for voxels that the loss ignores.

    Args:
        keys: keys of the labels.
        image_key: key of the image whose grid the labels must lie on.
        num_classes: number of label values including the background; the set is 0..`num_classes` - 1.
        label_sets: the sets of values that a label may hold, instead of `num_classes`.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        (1, X, Y, Z), unchanged.

    Raises:
        InputError: names the file, what is wrong and the fix.

    >>> from monai.data import MetaTensor
    >>> volume = MetaTensor(torch.tensor([[[[0.0, 1.0, 2.0]]]]), affine=torch.eye(4), meta={"filename_or_obj": "a.nii"})
    >>> CheckLabeld("label", num_classes=2)({"image": volume, "label": volume})
    Traceback (most recent call last):
    scripts.common.errors.InputError: a.nii: label values 2 are outside 0..1; correct the label or leave out the case
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        image_key: str = "image",
        num_classes: int | None = None,
        label_sets: Sequence[LabelSet] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.label_sets = label_sets or [range(num_classes or 0)]
        if min(map(len, self.label_sets)) < 2:
            raise InputError("give num_classes, 2 or more, or label_sets: the values that labels may hold.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the labels of a case."""
        image = data[self.image_key]
        grid = Grid(tuple(image.shape[1:]), image.affine.numpy())
        for key in self.key_iterator(data):
            label = data[key]
            path = str(label.meta.get("filename_or_obj", key))
            stored = StoredVolume(label[0].numpy(), label.affine.numpy())
            problems = label_problems(stored, grid, self.label_sets, ignored=data.get("ignored_label"), path=path)
            if problems:
                raise InputError(f"{path}: {'; '.join(problems)}; correct the label or leave out the case")
        return dict(data)


def with_label_check(transforms: Sequence[Callable], **options: Any) -> list[Callable]:
    """Insert a check of the labels behind the first transform, which reads image and label.

    Args:
        transforms: the deterministic transforms, which training shares with inference, where there is no label.
        options: of `CheckLabeld`, of the key "label".
    """
    read, *others = transforms
    return [read, CheckLabeld("label", **options), *others]


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
        keys: keys to mirror.
        label_key: the one of `keys` that holds class ids.
        pairs: pairs of class ids to swap; see `scripts.common.organs.left_right_pairs`.
        prob: probability that a case is mirrored.
        spatial_axis: the axis that runs left-right, 0 of RAS; None: the one that the affine of the label says.
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
        spatial_axis: int | None = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key, self.spatial_axis = label_key, spatial_axis
        self.swapped = {label: other for a, b in pairs for label, other in ((a, b), (b, a))}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Mirror a case with probability `prob`."""
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        axis = left_right_axis(d[self.label_key].affine) if self.spatial_axis is None else self.spatial_axis
        for key in self.key_iterator(d):
            values = self.swapped if key == self.label_key else {}
            d[key] = renumber(torch.flip(d[key], dims=[1 + axis]), values)
        return d


def left_right_axis(affine: torch.Tensor) -> int:
    """Return the axis of voxels that runs left-right, or most nearly so.

    >>> left_right_axis(torch.tensor([[0.0, 0, 2, 0], [0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]]))
    2
    """
    codes = nib.aff2axcodes(np.asarray(affine))
    return next(axis for axis, code in enumerate(codes) if code in "LR")


class WarnImplausibled(MapTransform):
    """Log a warning for each sign that an image of the torso is not what it says.

    See `scripts.data.plausibility.implausible`.

    Args:
        keys: keys of the images, (C, X, Y, Z) MetaTensors, of which the sum of the channels is looked at.
        kind: the kind of intensities that the network needs; None for any.
        allow_missing_keys: skip keys that the case lacks.
    """

    def __init__(self, keys: KeysCollection, *, kind: Kind | None = None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if kind not in (None, *KINDS):
            raise InputError(f"kind is {kind!r}: give one of {', '.join(KINDS)}.")
        self.kind = kind

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            image = data[key]
            name = image.meta.get("case") or image.meta.get("filename_or_obj", key)
            for sign in implausible(image.sum(dim=0).cpu().numpy(), np.asarray(image.affine), kind=self.kind):
                logger.warning("%s: %s", name, sign)
        return dict(data)
