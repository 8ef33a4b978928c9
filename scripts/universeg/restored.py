"""Files that are made of the probabilities of each class on the grid of the input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from scripts.common.flags import parse_flag
from scripts.common.names import is_picture
from scripts.inference.axis_maps import way_back
from scripts.inference.tiles import interpolate, spans


class SaveRestoredd(SaveImaged):
    """Write files from the probabilities of a case; how, the subclasses define.

    A subclass of `SaveImaged`, because MONAI Label leaves those out.

    Args:
        keys: the key of the probabilities; channel 0 is left out, see `scripts.universeg.inferer.SupportInferer`.
        orig_keys: the key of the image whose transforms are inverted.
        output_dir: folder of the files.
        enabled: whether to do anything; also "true" or "false".

    Shape:
        Probabilities (1 + classes, h, w, z), unchanged.
    """

    setting: str
    """Name of `enabled` for messages."""

    def __init__(
        self, keys: KeysCollection, *, orig_keys: str, output_dir: str | Path, enabled: bool | str = True
    ) -> None:
        super().__init__(keys, output_dir=output_dir)
        self.orig_keys, self.output_dir, self.enabled = orig_keys, Path(output_dir), parse_flag(enabled, self.setting)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files of a case."""
        if self.enabled:
            for key in self.key_iterator(data):
                self.write(data[key], data[self.orig_keys])
        return dict(data)

    @abstractmethod
    def write(self, probabilities: torch.Tensor, image: MetaTensor) -> None:
        """Write the files of one image."""

    def path_of(self, image: MetaTensor, end: str) -> Path:
        """Return the path of a file: a picture for pictures, else a volume."""
        suffix = ".png" if is_picture(Path(str(image.meta["filename_or_obj"]))) else ".nii.gz"
        return self.output_dir / f"{image.meta['case']}{end}{suffix}"


def restored_classes(probabilities: torch.Tensor, image: MetaTensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield channel, from 1, and its probabilities on the grid of the input, (X, Y, Z), one at a time."""
    maps = way_back(image)
    whole = [spans(weights, max(weights.shape))[0] for weights in maps.weights]
    for channel, found in enumerate(torch.as_tensor(probabilities)[1:].float().cpu(), start=1):
        yield channel, interpolate(found.permute(*maps.axes).contiguous(), whole)
