"""Episodes to train on: a target and a support set of one task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Compose, Randomizable, Transform
from monai.utils import convert_to_tensor
from torch.utils.data import Dataset

from scripts.common.errors import InputError
from scripts.common.names import listed
from scripts.common.progress import progress_bar
from scripts.universeg.support import SupportSlice, case_slices
from scripts.universeg.synthetic import synthetic_task

MIN_SHARE = 0.002
"""Share of the pixels of a slice that a class takes at least, in a target or support image."""
HELD_OUT_EVERY = 5
logger = logging.getLogger(__name__)


class Tasks:
    """Labelled slices by task: each class of the label maps is one.

    The slices are read at once and stay in memory: 6 bytes a pixel on the network's grid.

    Args:
        cases: with `image` and `label`, paths.
        transform: loads both and puts them on the network's grid, (1, H, W, Z).
        held_out: class ids of the tasks for validation; empty: every `HELD_OUT_EVERY`-th id.
        shared: whether training and validation draw all tasks, as fine-tuning to a task needs.
        progress: whether to show the cases that are read.

    Raises:
        InputError: a label is not one of its image, or a class is held out that no label shows.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        *,
        transform: Callable[[dict[str, Any]], Mapping[str, Any]],
        held_out: Sequence[int] = (),
        shared: bool = False,
        progress: bool = True,
    ) -> None:
        self.slices: dict[int, list[SupportSlice]] = {}
        for case in progress_bar(desc="reading", unit="case", iterable=cases, disable=not progress):
            loaded = transform({"image": case["image"], "label": case["label"], "case": case["case"]})
            self._add(case_slices({**loaded, "mask": loaded["label"], "case": case["case"]}))
        ids = sorted(self.slices)
        self.shared = shared
        self.held_out = sorted(held_out) or ids[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or ids[-1:]
        if missing := sorted(set(self.held_out) - set(ids)):
            shown = listed([str(class_id) for class_id in ids]) or "none"
            raise InputError(f"held_out_classes: no label shows {missing}; give some of {shown}.")
        if ids and not shared:
            logger.info("tasks: %d classes, of which %s are held out for validation", len(ids), self.held_out)

    def _add(self, slices: Sequence[SupportSlice]) -> None:
        for one in slices:
            ids, counts = one.label.unique(return_counts=True)
            for class_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
                if class_id and count >= MIN_SHARE * one.label.numel():
                    self.slices.setdefault(class_id, []).append(one)

    def of(self, *, held_out: bool) -> list[int]:
        """Return the class ids for validation, or those for training, that at least two slices show."""
        enough = [class_id for class_id, slices in sorted(self.slices.items()) if len(slices) > 1]
        return [class_id for class_id in enough if self.shared or (class_id in self.held_out) == held_out]


class Episodes(Randomizable, Dataset):
    """Draw episodes of random tasks.

    An episode is a target and `support_size` support images of one task, from other cases than the target if there are
    any. `task_transforms` change all images of an episode in the same way, which makes a task of its own of it;
    `image_transforms` change each image in another way. Synthetic tasks are those of
    `scripts.universeg.synthetic.synthetic_task`.

    The network shall use few and many examples, and images of a batch have to have the same number of them: so the
    number of different ones is drawn from 1, 2, 4, ... `support_size`, and these are repeated, which changes nothing
    else, as the network takes means over the support.

    Args:
        data: the tasks.
        episodes: length of the data set.
        image_size: rows and columns.
        support_size: number of support images.
        synthetic_share: share of the episodes that are synthetic; all if there is no other task.
        held_out: whether to draw the tasks held out for validation, and all `support_size` examples.
        task_transforms: of the whole episode, whose images are channels: `image` and `label` (1 + S, H, W).
        image_transforms: of each image, `image` and `label` (1, H, W).
        seed: makes each index the same episode always, as validation needs; None for training, where the sampler seeds.

    Shape:
        Items: `image` and `label` (1, H, W), `support_images` and `support_labels` (S, 1, H, W).

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self,
        data: Tasks,
        *,
        episodes: int,
        image_size: int,
        support_size: int,
        synthetic_share: float,
        held_out: bool = False,
        task_transforms: Sequence[Transform] = (),
        image_transforms: Sequence[Transform] = (),
        seed: int | None = None,
    ) -> None:
        if min(episodes, support_size) < 1 or not 0 <= synthetic_share <= 1:
            raise InputError("episodes and support_size: give 1 or more; synthetic_share: from 0 to 1.")
        self.data, self.episodes, self.image_size, self.support_size = data, episodes, image_size, support_size
        self.held_out, self.seed, self.classes = held_out, seed, data.of(held_out=held_out)
        self.synthetic_share = synthetic_share if self.classes else 1.0
        self.task_transforms, self.image_transforms = Compose(task_transforms), Compose(image_transforms)

    def __len__(self) -> int:
        return self.episodes

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Draw an episode."""
        if self.seed is not None:
            self.set_random_state(seed=(self.seed + index) % 2**32)
        sizes = [2**power for power in range(self.support_size.bit_length())]
        different = self.support_size if self.held_out else int(self.R.choice(sizes))
        if self.R.rand() < self.synthetic_share:
            generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))
            images, labels = synthetic_task(1 + different, self.image_size, generator)
        else:
            images, labels = self._drawn(1 + different)
        images, labels = self._augmented(images, labels)
        order = [0, *(1 + place % different for place in range(self.support_size))]
        images, labels = images[order, None], labels[order, None]
        return {
            "image": images[0],
            "label": labels[0],
            "support_images": images[1:],
            "support_labels": labels[1:],
        }

    def _drawn(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw slices of one class, the first from another case than the others, if there are others."""
        class_id = int(self.R.choice(self.classes))
        pool = self.data.slices[class_id]
        target = pool[self.R.randint(len(pool))]
        others = [one for one in pool if one.case != target.case] or [one for one in pool if one is not target]
        places = self.R.choice(len(others), n - 1, replace=len(others) < n - 1)
        chosen = [target, *(others[place] for place in places)]
        labels = torch.stack([(one.label == class_id).float() for one in chosen])
        return torch.stack([one.image for one in chosen]), labels

    def _augmented(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the transforms; a label that they emptied in the target keeps the images as they were."""
        self.task_transforms.set_random_state(seed=int(self.R.randint(2**31)))
        self.image_transforms.set_random_state(seed=int(self.R.randint(2**31)))
        changed = self.task_transforms({"image": images, "label": labels})
        pairs = zip(changed["image"], changed["label"], strict=True)
        single = [self.image_transforms({"image": image[None], "label": label[None]}) for image, label in pairs]
        new = [torch.cat([convert_to_tensor(one[key]) for one in single]) for key in ("image", "label")]
        if not new[1][0].any():
            return images, labels
        return new[0].clamp(0, 1), new[1]
