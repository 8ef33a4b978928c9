"""Read four MR sequences as one image of four channels, on one grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from scripts.brats.sequences import REFERENCE, SEQUENCES, check_sequences, describe_grid_mismatch
from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.common.grids import Grid
from scripts.io.loading import LoadVolumed

MIN_ZERO_SHARE = 0.2  # a skull-stripped head is mostly zeros, also when it is cropped to the brain
logger = logging.getLogger(__name__)


class LoadSequencesd(LoadVolumed):
    """Read images of four sequences, t1n, t1c, t2w and t2f, and single volumes beside them.

    Args:
        keys: keys whose values are lists of paths, or, of label maps, paths.
        image_keys: those of `keys` that hold an image; the others are read as `LoadVolumed` does.
        resample: resample sequences on other grids to that of t1c by their affines, instead of refusing them; this
            is right only if the patient did not move between them. Also "true" or "false".
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Four files of (X, Y, Z) voxels become a MetaTensor (4, X, Y, Z), float32, with the metadata of t1c.

    Raises:
        InputError: as `LoadVolumed`, for each file; a sequence is missing, has two files or is not in its place; the
            sequences lie on different grids and `resample` is false.
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
        self.resample = parse_flag(resample, "resample")

    def read(self, path: str | Path | Sequence[str], *, is_image: bool) -> MetaTensor:
        """Read a label map, or four sequences as the channels of an image; see `LoadVolumed.read`."""
        if not is_image:
            return super().read(path, is_image=is_image)
        if isinstance(path, str | Path):
            raise InputError(f"{path}: is a single file: list four, {', '.join(SEQUENCES)}, in this order.")
        paths = [str(each) for each in path]
        check_sequences(paths)
        volumes = [super(LoadSequencesd, self).read(each, is_image=is_image) for each in paths]
        warn_about_skulls(volumes, paths)  # before resampling, which pads with 0
        problem = describe_grid_mismatch(paths, [Grid(tuple(v.shape[1:]), v.affine.numpy()) for v in volumes])
        if problem and not self.resample:
            raise InputError(problem)
        if problem:
            volumes = resampled_to(volumes[REFERENCE], volumes)
            logger.warning("%s: resampled all sequences to its grid, without registering them", paths[REFERENCE])
        return MetaTensor(torch.cat([volume.as_tensor() for volume in volumes]), meta=volumes[REFERENCE].meta)


def resampled_to(reference: MetaTensor, volumes: Sequence[MetaTensor]) -> list[MetaTensor]:
    """Resample volumes to the grid of a reference by their affines; outside their field of view is 0.

    Args:
        reference: volume on the wanted grid; returned unchanged if it is among `volumes`.
        volumes: of one patient, who did not move between them.

    Shape:
        Each (1, x, y, z) becomes (1, X, Y, Z), the shape of the reference.
    """
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True)
    affine, shape = reference.affine, reference.shape[1:]
    return [v if v is reference else resample(v, dst_affine=affine, spatial_size=shape) for v in volumes]


def warn_about_skulls(volumes: Sequence[torch.Tensor], paths: Sequence[str]) -> None:
    """Log a warning if few voxels are 0: around a skull-stripped brain all are."""
    shares = {name: float((v == 0).float().mean()) for name, v in zip(SEQUENCES, volumes, strict=True)}
    if max(shares.values()) < MIN_ZERO_SHARE:
        listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        logger.warning("%s: few voxels are 0 (%s); the network expects skull-stripped images", paths[REFERENCE], listed)
