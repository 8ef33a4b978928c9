"""Prompts from the label maps of another bundle: a box around each organ, and its name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.common.grids import Grid, describe_mismatch
from scripts.common.label_maps import as_label_array
from scripts.common.names import listed, printable
from scripts.common.organs import spoken_name
from scripts.io.nifti import read_nifti
from scripts.segvol.prompt_files import Prompt, read_organs
from scripts.segvol.prompts import PromptBook

_ENDING = "_seg.nii.gz"
logger = logging.getLogger(__name__)


class BoxBook(PromptBook):
    """The prompts of all cases, drawn from coarse label maps on the grids of the images, each read when it is needed.

    Args:
        maps: folder of `<case>_seg.nii.gz`, which another bundle wrote for the same images.
        classes: ids and names of their classes, see `scripts.segvol.prompt_files.read_organs`.
        margin: voxels by which boxes are larger than the largest part of each organ, on each side; the network is
            trained with tight ones.

    Raises:
        InputError: when they are needed: no case has a map; of one case, its map cannot be read, is no label map, lies
            on another grid than the image or holds no organ.
    """

    def __init__(self, maps: str | Path, *, classes: str | Path, margin: int = 0) -> None:
        super().__init__(maps)
        self.maps, self.classes, self.margin = Path(maps), classes, margin
        self._known: dict[str, tuple[Grid, list[Prompt]]] = {}

    @cached_property
    def class_names(self) -> dict[int, str]:
        """Class id of the maps to name, of all classes."""
        return {class_id: spoken_name(name) for class_id, name in read_organs(self.classes).items()}

    def of(self, case: str, grid: Grid | None = None) -> list[Prompt]:
        """Return the prompts of a case, by class id; see `PromptBook.of`."""
        file = self._map_of(case)
        if case not in self._known:
            self._known[case] = self._read(case, file)
        own, prompts = self._known[case]
        if grid is not None and (mismatch := describe_mismatch(own, grid)):
            raise InputError(
                f"{printable(file)}: does not lie on the grid of the image: {mismatch}; give maps of the same images."
            )
        return prompts

    def prompted(self, cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the cases that have a map; maps of other cases are not used."""
        _ = self.class_names  # a file that cannot be read ends the run
        found = [case for case in cases if self._map_of(case["case"]).exists()]
        if not found:
            wanted = self._map_of(cases[0]["case"]).name
            raise InputError(
                f"{printable(self.maps)}: holds no map of any case, such as {wanted}; set maps to the output_dir of a "
                "run of the other bundle on the same images."
            )
        if left := [case["case"] for case in cases if case not in found]:
            logger.warning("%d cases have no map and are left out: %s", len(left), listed(left))
        return found

    def _map_of(self, case: str) -> Path:
        return self.maps / f"{case}{_ENDING}"

    def _read(self, case: str, file: Path) -> tuple[Grid, list[Prompt]]:
        """Return the grid of a map, and a prompt of each organ in it."""
        volume = read_nifti(file)
        labels = as_label_array(volume.values(), name=printable(file))
        boxes = boxes_around(labels, list(self.class_names), self.margin)
        if not boxes:
            raise InputError(
                f"{printable(file)}: holds none of the {len(self.class_names)} organs of map_classes, so that there is "
                "nothing to ask for; see why, or correct map_classes."
            )
        names = self.class_names
        return volume.grid, [
            Prompt(name=names[class_id], case=case, text=names[class_id], box=box, class_id=class_id)
            for class_id, box in boxes.items()
        ]


def boxes_around(labels: np.ndarray, ids: Sequence[int], margin: int) -> dict[int, tuple[float, ...]]:
    """Return the box of the largest part of each class, larger by a margin, but inside of the volume.

    Args:
        labels: class ids, (X, Y, Z).
        ids: those of the classes; what `labels` lacks gets no box.
        margin: voxels on each side.

    >>> labels = np.zeros((9, 9, 9), dtype=int)
    >>> labels[2:5, 3, 4:6] = labels[8, 8, 8] = 7
    >>> boxes_around(labels, [5, 7], 1)
    {7: (1, 2, 3, 5, 4, 6)}
    """
    boxes = {}
    for class_id, place in enumerate(ndimage.find_objects(labels, max_label=max(ids)), start=1):
        if place is not None and class_id in ids:
            parts, _ = ndimage.label(labels[place] == class_id)
            part = ndimage.find_objects(parts)[int(np.bincount(parts.ravel())[1:].argmax())]
            ends = [(p.start + s.start, p.start + s.stop) for p, s in zip(place, part, strict=True)]
            low = [max(0, start - margin) for start, _ in ends]
            high = [min(n, stop + margin) - 1 for (_, stop), n in zip(ends, labels.shape, strict=True)]
            boxes[class_id] = (*low, *high)
    return boxes
