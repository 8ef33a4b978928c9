"""Prompts from the label maps of another bundle: a box around each organ, and its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.common.label_maps import as_label_array
from scripts.common.names import printable
from scripts.common.organs import spoken_name
from scripts.io.nifti import read_nifti
from scripts.segvol.prompt_files import Prompt, read_organs
from scripts.segvol.prompts import PromptBook

_ENDING = "_seg.nii.gz"


class BoxBook(PromptBook):
    """The prompts of all cases, drawn from coarse label maps on the grids of the images.

    Args:
        maps: folder of `<case>_seg.nii.gz`, which another bundle wrote for the same images.
        classes: ids and names of their classes, see `scripts.segvol.prompt_files.read_organs`.
        margin: voxels by which boxes are larger than the largest part of each organ, on each side; the network is
            trained with tight ones.

    Raises:
        InputError: when they are needed: there are no maps, or one cannot be read or holds no organ.
    """

    def __init__(self, maps: str | Path, *, classes: str | Path, margin: int = 0) -> None:
        super().__init__(maps)
        self.maps, self.classes, self.margin = Path(maps), classes, margin

    @cached_property
    def prompts(self) -> list[Prompt]:
        """All prompts, with the class ids of the maps."""
        names, files = read_organs(self.classes), sorted(self.maps.glob(f"*{_ENDING}"))
        if not files:
            raise InputError(f"{printable(self.maps)}: holds no label maps *{_ENDING}; run the other bundle first.")
        return [prompt for file in files for prompt in self._of_map(file, names)]

    def prompted(self, cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the cases that have a map; maps of other cases are not used."""
        names = {case["case"] for case in cases}
        self.prompts = [prompt for prompt in self.prompts if prompt.case in names]
        return super().prompted(cases)

    def _of_map(self, file: Path, names: dict[int, str]) -> Iterator[Prompt]:
        labels = as_label_array(read_nifti(file).values(), name=printable(file))
        boxes = {
            class_id: box_around(labels == class_id, self.margin) for class_id in names if (labels == class_id).any()
        }
        if not boxes:
            raise InputError(f"{printable(file)}: holds none of the {len(names)} organs; correct map_classes.")
        for class_id, box in boxes.items():
            text = spoken_name(names[class_id])
            yield Prompt(name=text, case=file.name.removesuffix(_ENDING), text=text, box=box, class_id=class_id)


def box_around(mask: np.ndarray, margin: int) -> tuple[float, ...]:
    """Return the box of the largest part of a mask (X, Y, Z), larger by a margin, but inside of the volume.

    >>> mask = np.zeros((9, 9, 9), dtype=bool)
    >>> mask[2:5, 3, 4:6] = mask[8, 8, 8] = True
    >>> box_around(mask, 1)
    (1, 2, 3, 5, 4, 6)
    """
    parts, _ = ndimage.label(mask)
    places = ndimage.find_objects(parts)
    largest = places[int(np.bincount(parts.ravel())[1:].argmax())]
    low = [max(0, part.start - margin) for part in largest]
    high = [min(n, part.stop + margin) - 1 for part, n in zip(largest, mask.shape, strict=True)]
    return (*low, *high)
