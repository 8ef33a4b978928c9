"""Read four MR sequences as one image of four channels, on one grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from scripts.brats.inputs import find_sequences
from scripts.brats.sequences import (
    REFERENCE,
    SEQUENCES,
    check_sequences,
    describe_grid_mismatch,
    describe_missing_overlap,
    share_inside,
)
from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.common.grids import Grid
from scripts.common.names import printable
from scripts.io.loading import LoadVolumed

MIN_ZERO_SHARE = 0.2  # a skull-stripped head is mostly zeros, also when it is cropped to the brain
logger = logging.getLogger(__name__)


class LoadSequencesd(LoadVolumed):
    """Read images of four sequences, t1n, t1c, t2w and t2f, and single volumes beside them.

    Args:
        keys: keys whose values are lists of four paths, or one path: the folder of a case, or one of its sequences,
            whose other files are found beside it; of label maps, paths.
        image_keys: those of `keys` that hold an image; the others are read as `LoadVolumed` does.
        resample: resample sequences on other grids to that of t1c by their affines, instead of refusing them; this
            is right only if the patient did not move between them. Also "true" or "false".
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Four files of (X, Y, Z) voxels become a MetaTensor (4, X, Y, Z), float32, with the metadata of t1c.

    Raises:
        InputError: as `LoadVolumed`, for each file; a sequence is missing, has two files or is not in its place; two
            hold the same voxels; the sequences lie on different grids and `resample` is false, or on grids that hardly
            overlap.
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
        if not is_image or isinstance(path, MetaTensor):
            return super().read(path, is_image=is_image)
        paths = _sequences_of(Path(path)) if isinstance(path, str | Path) else [str(each) for each in path]
        check_sequences(paths)
        volumes = [super(LoadSequencesd, self).read(each, is_image=is_image) for each in paths]
        refuse_copies(volumes, paths)
        warn_about_skulls(volumes, paths)  # before resampling, which pads with 0
        volumes = on_one_grid(volumes, paths, resample=self.resample)
        return MetaTensor(torch.cat([volume.as_tensor() for volume in volumes]), meta=volumes[REFERENCE].meta)


def _sequences_of(path: Path) -> list[str]:
    """Return the four sequences of a case; clients such as MONAI Label give one path.

    Raises:
        InputError: there is no case, or there are several.
    """
    if not path.exists():
        raise InputError(f"{printable(path)}: no such file or folder; give a case's folder or one of its sequences.")
    found = find_sequences(path)
    if len(found) > 1:
        names = ", ".join(Path(case["case"]).name for case in found[:3])
        raise InputError(f"{printable(path)}: holds {len(found)} cases ({names}, ...); give the folder of one.")
    return found[0]["image"]


def on_one_grid(volumes: Sequence[MetaTensor], paths: Sequence[str], *, resample: bool) -> Sequence[MetaTensor]:
    """Return four sequences on the grid of t1c, resampled if they lie on others.

    Raises:
        InputError: they lie on other grids and `resample` is false, or hardly overlap.
    """
    grids = [Grid(tuple(volume.shape[1:]), volume.affine.numpy()) for volume in volumes]
    mismatch = describe_grid_mismatch(paths, grids)
    if not mismatch:
        return volumes
    if problem := describe_missing_overlap(paths, grids) if resample else mismatch:
        raise InputError(problem)
    how = "resampled all sequences to its grid, without registering them"
    covered = min(share_inside(grids[REFERENCE], grid) for grid in grids)
    logger.warning("%s: %s; each covers at least %.0f %% of it", paths[REFERENCE], how, 100 * covered)
    return resampled_to(volumes[REFERENCE], volumes)


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


def refuse_copies(volumes: Sequence[torch.Tensor], paths: Sequence[str]) -> None:
    """Refuse two sequences that hold the same voxels.

    Raises:
        InputError: names both files.
    """
    for (volume, path), (other, other_path) in combinations(zip(volumes, paths, strict=True), 2):
        if torch.equal(volume.as_tensor(), other.as_tensor()):
            raise InputError(f"{path}: holds the same voxels as {other_path}: give {', '.join(SEQUENCES)}, each once.")


def warn_about_skulls(volumes: Sequence[torch.Tensor], paths: Sequence[str]) -> None:
    """Log a warning if few voxels are 0: around a skull-stripped brain all are."""
    shares = {name: float((v == 0).float().mean()) for name, v in zip(SEQUENCES, volumes, strict=True)}
    if max(shares.values()) < MIN_ZERO_SHARE:
        listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        logger.warning("%s: few voxels are 0 (%s); the network expects skull-stripped images", paths[REFERENCE], listed)
