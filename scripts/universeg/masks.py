"""A mask for each class, where classes may overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor

from scripts.common.names import safe_name
from scripts.inference.axis_maps import way_back
from scripts.io.pictures import write_label_picture
from scripts.io.writing import header_for, write_label_map
from scripts.universeg.restored import SaveRestoredd, restored_classes
from scripts.universeg.support import SupportSet


class SaveMasksd(SaveRestoredd):
    """Write what is above the threshold of each class, on the grid of the input, whatever the other classes are there.

    The files are `<output_dir>/<case>_masks/<class id>_<name>.nii.gz`, of a picture `.png`: 1 inside, 0 outside.

    Args:
        keys: as `SaveRestoredd`.
        support: names the classes.
        threshold: probability above which a voxel belongs to a class.
        options: as `SaveRestoredd`.
    """

    setting = "masks"

    def __init__(self, keys: KeysCollection, *, support: SupportSet, threshold: float = 0.5, **options: Any) -> None:
        super().__init__(keys, **options)
        self.support, self.threshold = support, threshold

    def write(self, probabilities: torch.Tensor, image: MetaTensor) -> None:
        """Write the masks of one image."""
        affine = way_back(image).affine
        for channel, probability in restored_classes(probabilities, image):
            name = f"{self.support.values[channel]}_{safe_name(self.support.class_names[channel])}"
            path = self.path_of(image, f"_masks/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = (probability > self.threshold).numpy().astype(np.uint8)
            if path.suffix == ".png":
                write_label_picture(mask[..., 0].T, path)
            else:
                write_label_map(mask, header_for(mask, affine), path)
