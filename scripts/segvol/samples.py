"""What a training step sees of a case: the whole volume or a part of it, with masks and prompts drawn in it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, RandomizableTransform, Resize, Transform
from monai.utils import convert_to_tensor

from scripts.common.errors import InputError
from scripts.data.crops import RandCropByPlacesd
from scripts.segvol.prompt_sampling import MAX_MORE, draw_points, jittered_box, tight_box

ABSENT, PSEUDO = -1, 0
"""In place of a class id: no mask could be drawn, and the mask is a pseudo mask."""
SAMPLE_KEYS = ("target", "points", "point_labels", "boxes", "organs")
INSIDE_SHARE = 0.9
"""Share of the voxels of another region in the box of one, above which it belongs to the mask of the box too."""


class RandZoomOrCropd(RandomizableTransform, MapTransform):
    """Show the whole volume, resized, or a crop of it, as the two steps of inference do.

    Volumes are resized by nearest neighbour, images too, as in inference; labels keep their class ids.

    Crops are those of `RandCropByPlacesd`, centred on an organ two times of three; each organ is as likely as the
    others, however large it is.

    Args:
        keys: keys to change, on one grid.
        spatial_size: (D, H, W) of the network.
        crop_prob: probability of a crop.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Each key: (1, ...) to (1, *spatial_size).
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        spatial_size: Sequence[int],
        crop_prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, crop_prob)
        self.spatial_size = tuple(spatial_size)
        options = {"pos": 2, "neg": 1, "class_balanced": True, "padding_mode": "constant", "allow_missing_keys": True}
        self.resize = Resize(self.spatial_size, mode="nearest-exact")
        self.crop = RandCropByPlacesd(self.keys, spatial_size=self.spatial_size, **options)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandZoomOrCropd:
        """Seed the choice, and the crops with it."""
        super().set_random_state(seed, state)
        self.crop.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resize or crop a case."""
        self.randomize(None)
        if self._do_transform:
            return self.crop(data)[0]
        return {**data, **{key: self.resize(data[key]).to(data[key].dtype) for key in self.key_iterator(data)}}


class DrawPromptsd(Randomizable, Transform):
    """Draw masks of a sample, and of each a box and points that mean it.

    Masks are those of organs, of which the text is a prompt too, and of regions of the pseudo mask. Every second of the
    latter is meant by its box: then other regions that lie in the box belong to it as well.

    Boxes of organs are moved, each by a share of its extent of its own, so that exact ones are among them.

    Args:
        organs: number of organs, drawn with the same probability each, several times if there are fewer; None: each
            organ once.
        pseudo: number of regions.
        box_jitter: largest share of the extent by which the faces of a box move; see `jittered_box`. 0: tight boxes.
        seed: makes the prompts of a sample the same always, as validation needs; None for training.

    Shape:
        label, pseudo: (1, D, H, W), ids, 0 for none. Result, of S = `organs` + `pseudo` masks:

        - target: (S, D, H, W) int8, 0 or 1; empty if there is no organ or region.
        - points: (S, 21, 3), boxes: (S, 6), int64, see `scripts.segvol.prompt_sampling`; labels: (S, 21).
        - organs: (S,), class ids, `PSEUDO` or `ABSENT`; regions are last.

    Raises:
        InputError: a number is negative.
    """

    def __init__(
        self, *, organs: int | None = None, pseudo: int = 0, box_jitter: float = 0.0, seed: int | None = None
    ) -> None:
        if (organs is not None and organs < 1) or pseudo < 0:
            raise InputError(f"organs is {organs} and pseudo {pseudo}: give 1 or more organs, and 0 or more others.")
        if box_jitter < 0:
            raise InputError(f"box_jitter is {box_jitter}: give 0 or a share of the extent.")
        self.organs, self.pseudo, self.box_jitter, self.seed = organs, pseudo, box_jitter, seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw the masks and prompts of a sample."""
        if self.seed is not None:
            self.set_random_state(seed=self.seed)
        label = convert_to_tensor(data["label"]).numpy()[0]
        drawn = [self._organ(label, class_id) for class_id in self._draw_classes(label)]
        regions = convert_to_tensor(data["pseudo"]).numpy()[0] if self.pseudo else label
        drawn += [self._region(regions, by_box=bool(number % 2)) for number in range(self.pseudo)]
        names = ("target", "points", "point_labels", "boxes", "organs")
        sample = {
            name: torch.from_numpy(np.stack(one)) for name, one in zip(names, zip(*drawn, strict=True), strict=True)
        }
        return {"image": convert_to_tensor(data["image"]).float(), **sample}

    def _draw_classes(self, label: np.ndarray) -> list[int]:
        present = [int(one) for one in np.unique(label) if one]
        if not present:
            return [ABSENT] * (self.organs or 1)
        if self.organs is None:
            return present
        return [int(one) for one in self.R.choice(present, self.organs, replace=len(present) < self.organs)]

    def _organ(self, label: np.ndarray, class_id: int) -> tuple[np.ndarray, ...]:
        mask = label == class_id
        box = tight_box(mask)
        if self.box_jitter:
            box = jittered_box(box, mask.shape, self.R, share=self.R.uniform(0, self.box_jitter))
        return self._prompts(mask, box, class_id, more=self.R.randint(MAX_MORE + 1))

    def _region(self, regions: np.ndarray, *, by_box: bool) -> tuple[np.ndarray, ...]:
        ids, voxels = np.unique(regions[regions > 0], return_counts=True)
        mask = regions == self.R.choice(ids) if len(ids) else np.zeros(regions.shape, dtype=bool)
        box = tight_box(mask)
        if by_box and len(ids):
            part = tuple(slice(first, last + 1) for first, last in zip(box[:3], box[3:], strict=True))
            inside = np.bincount(regions[part].ravel(), minlength=ids[-1] + 1)[ids]
            mask[part] |= np.isin(regions[part], ids[inside > INSIDE_SHARE * voxels])
        return self._prompts(mask, box, PSEUDO, more=self.R.randint(4, MAX_MORE + 1))

    def _prompts(self, mask: np.ndarray, box: np.ndarray, class_id: int, *, more: int) -> tuple[np.ndarray, ...]:
        points, labels = draw_points(mask, self.R, positive=1 + more, negative=self.R.randint(MAX_MORE + 1))
        return mask.astype(np.int8), points, labels, box, np.array(class_id)
