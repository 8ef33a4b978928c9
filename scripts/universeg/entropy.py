"""Maps of how uncertain a segmentation is."""

from __future__ import annotations

import math
from functools import reduce
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from scripts.common.files import atomic_path
from scripts.inference.axis_maps import way_back
from scripts.universeg.restored import SaveRestoredd, restored_classes


class SaveEntropyd(SaveRestoredd):
    """Write the entropy of the predicted probabilities, on the grid of the input: 0 is certain, 1 is not known at all.

    The entropy is that of each class against the rest, in bits, of the class with the largest. With an ensemble the
    probabilities are means, so that draws which disagree give a high entropy. The file is
    `<output_dir>/<case>_entropy.nii.gz`, float32; of a picture `<case>_entropy.png`, 255 is 1 bit.
    """

    setting = "entropy"

    def write(self, probabilities: torch.Tensor, image: MetaTensor) -> None:
        """Write one map."""
        entropies = (binary_entropy(found) for _, found in restored_classes(probabilities, image))
        entropy = reduce(torch.maximum, entropies)
        path = self.path_of(image, "_entropy")
        if path.suffix == ".png":
            _save_picture(entropy[..., 0].T.numpy(), path)
        else:
            with atomic_path(path) as temporary:
                nib.save(nib.Nifti1Image(entropy.numpy(), way_back(image).affine), temporary)


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
