"""Read four MR sequences as one image of four channels, on one grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from scripts.grids import Grid
from scripts.sequences import REFERENCE, SEQUENCES, check_sequences, grid_problem
from scripts.settings import flag
from scripts.transforms import LoadVolumed

MIN_ZERO_SHARE = 0.2  # a skull-stripped head is mostly zeros, also when it is cropped to the brain
logger = logging.getLogger(__name__)


class LoadSequencesd(LoadVolumed):
    """Read images of four sequences, t1n, t1c, t2w and t2f, and single volumes beside them.

    Args:
        keys: keys whose values are lists of paths, or, of label maps, paths.
        image_keys: those of `keys` that hold an image; the others are read as `LoadVolumed` does.
        resample: bring sequences on other grids to that of t1c by their affines, instead of refusing them; the
            patient must have lain still. Also "true" or "false".
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Four files of (X, Y, Z) voxels become a MetaTensor (4, X, Y, Z), float32, with the metadata of t1c.

    Raises:
        ValueError: as `LoadVolumed`, for each file; sequences are missing, there twice or in another order; they lie
            on different grids and are not to be resampled.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        image_keys: Sequence[str] = ("image",),
        resample: bool | str = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, image_keys=image_keys, allow_missing_keys=allow_missing_keys)
        self.resample = flag(resample, "resample")

    def read(self, path: str | Path | Sequence[str], *, is_image: bool, reader: object = None) -> MetaTensor:
        """Read a label map, or sequences into the channels of an image."""
        if not is_image:
            return super().read(path, is_image=is_image, reader=reader)
        if isinstance(path, str | Path):
            raise ValueError(f"{path}: is one file: list the four of {', '.join(SEQUENCES)}, in this order.")
        paths = [str(each) for each in path]
        check_sequences(paths)
        volumes = [super(LoadSequencesd, self).read(each, is_image=is_image, reader=reader) for each in paths]
        problem = grid_problem(paths, [Grid(tuple(v.shape[1:]), v.affine.numpy()) for v in volumes])
        if problem and not self.resample:
            raise ValueError(problem)
        if problem:
            volumes = on_grid_of(volumes, volumes[REFERENCE])
            logger.warning(
                "%s: all sequences resampled to its grid by their affines; nothing was registered or skull-stripped",
                paths[REFERENCE],
            )
        warn_of_skulls(volumes, paths)
        return MetaTensor(torch.cat([volume.as_tensor() for volume in volumes]), meta=volumes[REFERENCE].meta)


def on_grid_of(volumes: Sequence[MetaTensor], reference: MetaTensor) -> list[MetaTensor]:
    """Resample volumes to a grid by their affines; outside their field of view is 0.

    Args:
        volumes: of one patient, who lay still between them.
        reference: volume on the wanted grid; taken as it is where it is among `volumes`.

    Shape:
        Each (1, x, y, z); the results (1, X, Y, Z), as the reference.
    """
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True)
    affine, shape = reference.affine, reference.shape[1:]
    return [v if v is reference else resample(v, dst_affine=affine, spatial_size=shape) for v in volumes]


def warn_of_skulls(volumes: Sequence[torch.Tensor], paths: Sequence[str]) -> None:
    """Log a warning for a case that hardly holds a 0, as only air in a skull-stripped image is."""
    shares = {name: float((v == 0).float().mean()) for name, v in zip(SEQUENCES, volumes, strict=True)}
    if max(shares.values()) < MIN_ZERO_SHARE:
        listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        logger.warning("%s: few voxels are 0 (%s): strip the skull first", paths[REFERENCE], listed)
