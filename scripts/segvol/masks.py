"""From the probabilities of prompts to a label map, masks and what is known of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd, MapTransform

from scripts.common.names import safe_name
from scripts.io.writing import SaveLabelMapd
from scripts.segvol.coarse import QUANTA
from scripts.segvol.inferer import Overlaps
from scripts.segvol.prompt_files import Prompt
from scripts.segvol.prompts import PromptBook
from scripts.segvol.viewer import prompts_of

FOUND, MASKS = "found", "masks"


class Found(NamedTuple):
    """What a prompt gave.

    Attributes:
        prompt: what was asked.
        voxels: number of voxels, those shared with other prompts included.
        volume_ml: their volume.
        confidence: mean probability in them; NaN if there are none.
        shared: number of voxels that belong to other prompts too.
    """

    prompt: Prompt
    voxels: int
    volume_ml: float
    confidence: float
    shared: int


class RestoreVolumed(Invertd):
    """Bring volumes from the network's grid to that of the file, by turning axes and padding what was cut off with 0.

    Args:
        keys: the one key of the volumes.
        orig_keys: the one key of the image.
        transform: the deterministic preprocessing of the image.
    """

    def __init__(self, keys: KeysCollection, *, orig_keys: KeysCollection, transform: Any) -> None:
        super().__init__(keys, transform=transform, orig_keys=orig_keys, nearest_interp=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore the volumes of a case; an inferer returns them without metadata, which MONAI then leaves as it is."""
        return super().__call__({**data, self.keys[0]: MetaTensor(data[self.keys[0]])})


class JoinPromptsd(MapTransform):
    """Make the label map of a case: each prompt's voxels have its class id, those of several the most probable one's.

    Adds `found`, a list of `Found`, and `masks`: name for files to mask (1, X, Y, Z) of the prompts that share voxels.

    Args:
        keys: the one key of what `scripts.segvol.inferer.ZoomInferer` returned, on the grid of the file.
        prompts: of each case.
        overlaps: of the inferer.

    Shape:
        uint8 (C, X, Y, Z) becomes class ids (1, X, Y, Z).
    """

    def __init__(self, keys: KeysCollection, *, prompts: PromptBook, overlaps: Overlaps = "files") -> None:
        super().__init__(keys)
        self.prompts, self.overlaps = prompts, overlaps

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Join the prompts of a case."""
        pred, prompts = data[self.keys[0]], prompts_of(data, self.prompts)
        volumes, masks = pred.as_tensor(), {}
        voxel_ml = float(abs(np.linalg.det(np.asarray(pred.affine, dtype=np.float64)[:3, :3]))) / 1000
        if self.overlaps == "largest":
            label_map = volumes[:1]
            voxels, sums = sizes(*volumes)
            found = [_found(p, int(voxels[p.class_id]), int(sums[p.class_id]), 0, voxel_ml) for p in prompts]
        else:
            label_map, several = joined(volumes, [prompt.class_id for prompt in prompts])
            found = []
            for prompt, probability in zip(prompts, volumes, strict=True):
                mask = probability > QUANTA // 2
                total, shared = int(probability[mask].sum(dtype=torch.int64)), int(several[mask].sum())
                found.append(_found(prompt, int(mask.sum()), total, shared, voxel_ml))
                if shared:
                    masks[prompt.file_part] = MetaTensor(mask[None].to(torch.uint8), meta=pred.meta)
        return {**data, self.keys[0]: MetaTensor(label_map, meta=pred.meta), FOUND: found, MASKS: masks}


def sizes(label_map: torch.Tensor, probability: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of voxels of each class id and the sum of their probabilities, (256,) each, in one pass.

    Args:
        label_map: uint8, (X, Y, Z).
        probability: uint8, of the same shape.

    >>> voxels, sums = sizes(torch.tensor([[[0, 2, 2]]]).byte(), torch.tensor([[[9, 200, 140]]]).byte())
    >>> voxels[:3].tolist(), sums[:3].tolist()
    ([1, 0, 2], [9, 0, 340])
    """
    counts = np.zeros((256, 256), dtype=np.int64)
    for ids, values in zip(label_map, probability, strict=True):
        pairs = ids.flatten().to(torch.int64) * 256 + values.flatten()
        counts += torch.bincount(pairs, minlength=counts.size).reshape(counts.shape).numpy()
    return counts.sum(axis=1), counts @ np.arange(256)


def joined(volumes: torch.Tensor, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the label map (1, X, Y, Z) of probabilities (C, X, Y, Z), and where several prompts lie, (X, Y, Z).

    >>> volumes = torch.tensor([[200, 130, 0], [150, 140, 90]], dtype=torch.uint8)[:, None, None]
    >>> label_map, several = joined(volumes, [4, 5])
    >>> label_map.flatten().tolist(), several.flatten().tolist()
    ([4, 5, 0], [True, True, False])
    """
    kind = torch.uint8 if max(ids) <= QUANTA else torch.int32
    label_map, best = (torch.zeros(volumes.shape[1:], dtype=dtype) for dtype in (kind, torch.uint8))
    once, several = (torch.zeros_like(best, dtype=torch.bool) for _ in range(2))
    for class_id, volume in zip(ids, volumes, strict=True):
        mask = volume > QUANTA // 2
        several |= once & mask
        once |= mask
        wins = mask & (volume > best)
        label_map[wins], best[wins] = class_id, volume[wins]
    return label_map[None], several


def _found(prompt: Prompt, voxels: int, total: int, shared: int, voxel_ml: float) -> Found:
    """Return what a prompt gave, of the sum of its voxels' probabilities in 1/255."""
    confidence = total / voxels / QUANTA if voxels else float("nan")
    return Found(prompt, voxels, voxels * voxel_ml, confidence, shared)


class SavePromptMasksd(SaveLabelMapd):
    """Write the mask of each prompt that shares voxels with others as `<case>_<name>_seg.nii.gz`; see `SaveLabelMapd`.

    Args:
        keys: the one key of what `JoinPromptsd` added.
        options: as `SaveLabelMapd`.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the masks of a case."""
        for name, mask in data[self.keys[0]].items():
            if mask.meta.get("case") or mask.meta.get("filename_or_obj"):
                renamed = {**mask.meta, "case": safe_name(f"{self.case_of(mask)}_{name}")}
                self.write(MetaTensor(mask.as_tensor(), meta=renamed))
        return dict(data)
