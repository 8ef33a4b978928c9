"""Maps of how uncertain a segmentation is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from scripts.common.files import atomic_path
from scripts.common.flags import parse_flag
from scripts.common.names import is_picture
from scripts.inference.axis_maps import way_back
from scripts.inference.tiles import interpolate, spans


class SaveEntropyd(SaveImaged):
    """Write the entropy of the predicted probabilities, on the grid of the input: 0 is certain, 1 is not known at all.

    The entropy is that of each class against the rest, in bits, of the class with the largest. With an ensemble the
    probabilities are means, so that draws which disagree give a high entropy. The file is
    `<output_dir>/<case>_entropy.nii.gz`, float32; of a picture `<case>_entropy.png`, 255 is 1 bit.

    A subclass of `SaveImaged`, because MONAI Label leaves those out.

    Args:
        keys: the key of the probabilities; channel 0 is left out, see `scripts.universeg.inferer.SupportInferer`.
        orig_keys: the key of the image whose transforms are inverted.
        output_dir: folder of the files.
        enabled: whether to do anything; also "true" or "false".

    Shape:
        Probabilities (1 + classes, h, w, z), unchanged.
    """

    def __init__(
        self, keys: KeysCollection, *, orig_keys: str, output_dir: str | Path, enabled: bool | str = True
    ) -> None:
        super().__init__(keys, output_dir=output_dir)
        self.orig_keys, self.output_dir, self.enabled = orig_keys, Path(output_dir), parse_flag(enabled, "entropy")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the map of a case."""
        if self.enabled:
            for key in self.key_iterator(data):
                self.write(data[key], data[self.orig_keys])
        return dict(data)

    def write(self, probabilities: torch.Tensor, image: MetaTensor) -> None:
        """Write one map."""
        maps = way_back(image)
        whole = [spans(weights, max(weights.shape))[0] for weights in maps.weights]
        entropy = torch.zeros(maps.shape)
        for channel in torch.as_tensor(probabilities)[1:].float().cpu():
            restored = interpolate(channel.permute(*maps.axes).contiguous(), whole)
            entropy = torch.maximum(entropy, binary_entropy(restored))
        path = self.output_dir / str(image.meta["case"])
        if is_picture(Path(str(image.meta["filename_or_obj"]))):
            _save_picture(entropy[..., 0].T.numpy(), path.with_name(f"{path.name}_entropy.png"))
        else:
            with atomic_path(path.with_name(f"{path.name}_entropy.nii.gz")) as temporary:
                nib.save(nib.Nifti1Image(entropy.numpy(), maps.affine), temporary)


def binary_entropy(probability: torch.Tensor) -> torch.Tensor:
    """Return the entropy in bits of events of a probability.

    >>> binary_entropy(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0., 1., 0.])
    """
    p = probability.clamp(0, 1)
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)


def _save_picture(values: np.ndarray, path: Path) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray((values * 255).round().astype(np.uint8)).save(temporary, format="PNG")
