"""The support set: labelled slices that show the network what to segment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from scripts.common.errors import InputError, raise_all
from scripts.common.grids import Grid, describe_mismatch
from scripts.common.label_maps import MAX_CLASS_ID, as_label_array
from scripts.common.names import printable, unique_names
from scripts.data.class_names import read_class_names
from scripts.data.datalist import load_datalist
from scripts.data.folder_pairs import pair_folders

FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
MAX_CLASSES = 255
logger = logging.getLogger(__name__)


class SupportSlice(NamedTuple):
    """A labelled slice.

    Attributes:
        image: (H, W), on the network's grid, 0..1.
        label: (H, W), class ids of the files.
        case: name of the image that it is from.
        index: its place in the image, along the slices.
        grid: the network's grid of the image.
    """

    image: torch.Tensor
    label: torch.Tensor
    case: str
    index: int
    grid: Grid


class SupportSet:
    """Labelled slices of pictures or volumes; they are read when they are needed first.

    Slices without foreground are left out: in a volume of which a few slices are labelled, the others are not examples.

    Args:
        source: a folder with `images` and `labels` (or `imagesTr` and `labelsTr`), files of the same name; or a
            datalist (`.json`) whose `training` lists images and labels. Names of the classes are those of `labels` in
            the datalist, or in `labels.json` of the folder: class id to name.
        transform: loads `image` and `mask` of a case and puts both on the network's grid, (1, H, W, Z).

    Raises:
        InputError: when it is read: there is no pair, a label lies on another grid than its image or holds what is no
            class id, no label has foreground, or there are more than `MAX_CLASSES` classes.
    """

    def __init__(self, source: str | Path, transform: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        self.source, self.transform = Path(source), transform

    @cached_property
    def slices(self) -> list[SupportSlice]:
        """All slices with foreground, by case and place."""
        found: list[SupportSlice] = []
        for case in list_support(self.source):
            own = case_slices(self.transform(case))
            if not own:
                logger.warning("%s: left out of the support, its label is empty", printable(case["mask"]))
            found += own
        if not found:
            raise InputError(f"{printable(self.source)}: no support label has foreground; give at least one that has.")
        logger.info("support: %d slices of %d images", len(found), len({one.case for one in found}))
        return found

    @cached_property
    def values(self) -> dict[int, int]:
        """Channel of the network's output, from 1, to class id in the files, ascending."""
        ids = sorted({int(value) for one in self.slices for value in one.label.unique()} - {0})
        if len(ids) > MAX_CLASSES:
            raise InputError(f"{printable(self.source)}: {len(ids)} classes; give at most {MAX_CLASSES} at once.")
        return dict(enumerate(ids, start=1))

    @cached_property
    def class_names(self) -> dict[int, str]:
        """Channel of the network's output, from 1, to the name of the class."""
        names = read_class_names(self.source)
        return {channel: names.get(value, f"class {value}") for channel, value in self.values.items()}

    def showing(self, channel: int) -> list[int]:
        """Return which slices show a class."""
        return [place for place, one in enumerate(self.slices) if (one.label == self.values[channel]).any()]

    def tensors(self, places: Sequence[int], channel: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return some slices as images and masks of a class, (1, S, 1, H, W) each."""
        chosen = [self.slices[place] for place in places]
        images = torch.stack([one.image for one in chosen])[None, :, None]
        masks = torch.stack([one.label == self.values[channel] for one in chosen])[None, :, None]
        return images, masks.to(images)


def list_support(source: Path) -> list[dict[str, str]]:
    """List the pairs of a support set as `image`, `mask` and `case`; see `SupportSet`."""
    if source.suffix == ".json" and source.is_file():
        options = {"required": ["training"], "check": False, "allow_overlap": True, "pictures": True}
        pairs = load_datalist(source.parent, datalist_file=source.name, **options)["training"]
    elif folders := next(((i, j) for i, j in FOLDERS if (source / i).is_dir() and (source / j).is_dir()), None):
        problems: list[str] = []
        pairs = pair_folders(*(source / folder for folder in folders), problems, pictures=True)
        raise_all(problems, printable(source), "add the missing files, or remove or rename these")
    else:
        raise InputError(
            f"{printable(source)}: no support; give a folder that holds the folders images and labels, or a datalist "
            "(.json) whose training lists images and labels."
        )
    if not pairs:
        raise InputError(f"{printable(source)}: holds no pair of image and label; give at least one.")
    names = unique_names([pair["image"] for pair in pairs])
    return [
        {"image": pair["image"], "mask": pair["label"], "case": name} for pair, name in zip(pairs, names, strict=True)
    ]


def case_slices(case: Mapping[str, Any]) -> list[SupportSlice]:
    """Return the slices with foreground of a case that `SupportSet.transform` returned."""
    image, mask = case["image"], case["mask"]
    grids = [Grid(tuple(x.meta["spatial_shape"]), np.asarray(x.meta["original_affine"])) for x in (mask, image)]
    name = printable(mask.meta["filename_or_obj"])
    if mismatch := describe_mismatch(*grids):
        raise InputError(f"{name}: does not lie on the grid of its image: {mismatch}; give a label of that grid.")
    labels = as_label_array(mask.as_tensor(), name=name)
    if labels.min() < 0 or labels.max() > MAX_CLASS_ID:
        raise InputError(f"{name}: holds {labels.min()} to {labels.max()}; give class ids from 0 to {MAX_CLASS_ID}.")
    labels = torch.from_numpy(labels[0].astype(np.int32))
    grid = Grid(tuple(image.shape[1:]), np.asarray(image.affine, dtype=np.float64))
    pixels = image.as_tensor()[0]
    return [
        SupportSlice(pixels[..., z].contiguous(), labels[..., z].contiguous(), str(case["case"]), z, grid)
        for z in range(labels.shape[-1])
        if labels[..., z].any()
    ]
