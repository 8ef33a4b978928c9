"""Prompts of a viewer: what somebody clicks in MONAI Label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.common.grids import Grid
from scripts.segvol.prompt_files import Prompt, checked
from scripts.segvol.prompts import PromptBook

VIEWER_PROMPTS = "viewer_prompts"
_NAMES = {"foreground": "points", "background": "negative", "roi": "box", "text": "text"}
"""Keys of a request, and what they are of a `Prompt`."""


class ViewerPromptsd(MapTransform):
    """Make a prompt of what MONAI Label adds to a case, which then is the only one of this case.

    A request of its "deepgrow" models holds the voxels of the file that were clicked, as `foreground` and
    `background`; it may hold a box as `roi`, `[x, y, x, y, first slice, last slice]`, and a `text`. A case without
    these, as all are outside of MONAI Label, stays as it is.

    Args:
        keys: the key of the image, which gets the prompt as metadata, for the inferer.

    Raises:
        InputError: there is background alone, or numbers that cannot be.

    >>> import torch
    >>> from monai.data import MetaTensor
    >>> image = MetaTensor(torch.zeros(1, 4, 4, 4))
    >>> case = ViewerPromptsd("image")({"image": image, "foreground": [[1, 2, 3]], "background": []})
    >>> case["viewer_prompts"][0].points
    ((1.0, 2.0, 3.0),)
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make the prompt of a case."""
        d = dict(data)
        given = {name: d[key] for key, name in _NAMES.items() if d.get(key)}
        if not given:
            return d
        if box := given.get("box"):
            given["box"] = [*box[:2], *box[4:5], *box[2:4], *box[5:]]
        d[VIEWER_PROMPTS] = [replace(checked(given, "the request"), name="prompt", class_id=1)]
        for key in self.key_iterator(d):
            d[key].meta[VIEWER_PROMPTS] = d[VIEWER_PROMPTS]
        return d


def prompts_of(data: Mapping[Hashable, Any], book: PromptBook) -> list[Prompt]:
    """Return the prompts of a case, or of the metadata of its image: those of the viewer, or else of the book."""
    case = data.get("case", "")
    return data.get(VIEWER_PROMPTS) or book.of(str(case[0] if isinstance(case, list) else case), file_grid(data))


def file_grid(meta: Mapping[Hashable, Any]) -> Grid | None:
    """Return the grid of the file of an image, whose metadata may be those of a batch of one; None if they lack it."""
    if "original_affine" not in meta:
        return None
    shape = tuple(int(np.ravel(n)[0]) for n in meta["spatial_shape"])
    return Grid(shape, np.asarray(meta["original_affine"], dtype=np.float64).reshape(-1, 4, 4)[0])
