"""Dictionary transforms: read a volume safely, mirror it with its labels, bring logits back to its grid."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor, NibabelReader, PydicomReader
from monai.transforms import Invertd, LoadImaged, MapTransform, RandomizableTransform
from monai.transforms import Spacingd as MonaiSpacingd
from nibabel.filebasedimages import ImageFileError

from scripts.inputs import check_dicom_series
from scripts.regions import Regions, check_channels, paint_regions

SPACING_RANGE_MM = (0.01, 50.0)
READ_ERRORS = (OSError, EOFError, zlib.error, ImageFileError, RuntimeError, ValueError, TypeError, KeyError)


class LoadVolumed(LoadImaged):
    """Read 3-D volumes, channel first, and refuse what would only fail hours later.

    A NIfTI file is read with nibabel, a folder as a DICOM series with pydicom.

    Args:
        keys: keys whose values are paths.
        image_keys: those of `keys` that hold an image, which may be neither constant nor NaN; the others are
            label maps, of which one that is empty is legitimate.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        A file of (X, Y, Z) voxels becomes a MetaTensor (1, X, Y, Z), float32.

    Raises:
        ValueError: the file cannot be read, is not 3-D, has a spacing outside 0.01..50 mm or a singular affine,
            or holds NaN, infinity or a single value. The message names the file and the mend.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        image_keys: Sequence[str] = ("image",),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, reader="NibabelReader", image_only=True, allow_missing_keys=allow_missing_keys)
        self.image_keys = set(image_keys)

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.read(d[key], is_image=key in self.image_keys, reader=reader)
            d[key].meta["original_channel_dim"] = "no_channel"
            if "case" in d:
                d[key].meta["case"] = d["case"]
        return d

    def read(self, path: str | Path, *, is_image: bool, reader: ImageReader | None = None) -> MetaTensor:
        """Read one volume.

        Args:
            path: NIfTI file or DICOM folder.
            is_image: whether it may be neither constant nor NaN.
            reader: instead of the one that the path asks for.
        """
        own_reader = reader or _reader(path)
        try:
            volume = self._loader(path, own_reader)
        except READ_ERRORS as error:
            raise ValueError(f"{path}: {_why_unreadable(error)}") from error
        check_geometry(volume, path)
        if is_image:
            check_intensities(volume, path)
        return MetaTensor(volume[None], meta=volume.meta)


def _reader(path: str | Path) -> ImageReader:
    """Choose the reader: DICOM series come as folders, all else is NIfTI."""
    if not Path(path).is_dir():
        return NibabelReader()
    check_dicom_series(Path(path))
    return PydicomReader()


def _why_unreadable(error: BaseException) -> str:
    """Say in one line what the chain of reader errors means and how to mend it."""
    cause = error.__cause__ or error
    text = str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__
    return f"cannot be read ({text}): it is missing, truncated or neither NIfTI nor DICOM; copy it again."


def check_geometry(volume: MetaTensor, path: object) -> None:
    """Refuse a volume that is not 3-D or whose affine no patient can have.

    Args:
        volume: (X, Y, Z) with an affine in mm.
        path: named in the message.

    Raises:
        ValueError: see `LoadVolumed`.
    """
    if volume.ndim != 3 or 0 in volume.shape:
        shape = tuple(volume.shape)
        raise ValueError(f"{path}: has shape {shape}, not (X, Y, Z): split a series into one file per volume.")
    affine = np.asarray(volume.affine, dtype=np.float64)[:3, :3]
    spacing_mm = np.linalg.norm(affine, axis=0)
    low, high = SPACING_RANGE_MM
    if not np.all(np.isfinite(spacing_mm) & (spacing_mm >= low) & (spacing_mm <= high)):
        shown = tuple(round(float(mm), 4) for mm in spacing_mm)
        raise ValueError(f"{path}: voxel spacing {shown} mm is outside {low}..{high} mm: correct the header.")
    if abs(np.linalg.det(affine / spacing_mm)) < 1e-3:
        raise ValueError(f"{path}: its affine is singular, two axes run in parallel: correct the header.")


def check_intensities(volume: torch.Tensor, path: object) -> None:
    """Refuse an image with NaN, infinity or a single value; see `LoadVolumed`."""
    low, high = float(volume.min()), float(volume.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{path}: holds NaN or infinite voxels: export it again or replace them by air.")
    if low == high:
        raise ValueError(f"{path}: is constant, every voxel is {low:g}: this is no image.")


class Spacingd(MonaiSpacingd):
    """`monai.transforms.Spacingd` that sees only its own keys.

    MONAI 1.6.1 updates every entry named `<key>_…` as if it were a metadata dictionary, and so fails on the
    string `image_path` that MONAI Label puts into each case.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        own = {key: data[key] for key in self.keys if key in data}
        return {**data, **super().__call__(own, lazy=lazy)}


class RandLeftRightFlipd(RandomizableTransform, MapTransform):
    """Mirror a patient left to right and exchange the labels of paired organs.

    The published code mirrors without exchanging, which teaches the network that a right kidney may be a left
    one.

    Args:
        keys: keys to mirror, oriented so that spatial axis 0 runs left-right (RAS).
        label_key: the one of `keys` that holds class ids.
        pairs: pairs of class ids that exchange; see `scripts.labels.left_right_pairs`.
        prob: chance that a case is mirrored.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Each key: (C, X, Y, Z), unchanged.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        label_key: str = "label",
        pairs: Sequence[tuple[int, int]],
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key = label_key
        self.pairs = [tuple(pair) for pair in pairs]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        for key in self.key_iterator(d):
            pairs = self.pairs if key == self.label_key else []
            d[key] = exchange_labels(torch.flip(d[key], dims=[1]), pairs)
        return d


def exchange_labels(label: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Exchange class ids pairwise, leaving all others.

    Args:
        label: class ids, any shape.
        pairs: pairs of class ids.

    Returns:
        A new tensor if there are pairs, else `label`.
    """
    exchanged = label.clone() if pairs else label
    for a, b in pairs:
        exchanged[label == a] = b
        exchanged[label == b] = a
    return exchanged


class RestoreLabelMapd(Invertd):
    """Bring logits back to the input's own grid and make the label map there.

    Interpolating logits keeps borders smooth where a nearest-neighbour label map shows the network's coarse grid.
    Channels are restored one at a time, so that three volumes of the input's size are held instead of one per
    channel. Voxels outside the foreground crop become background.

    Args:
        keys: the one key of the logits.
        orig_keys: the one key of the image whose transforms are undone.
        transform: the deterministic preprocessing of that image.
        regions: where channels are regions that overlap: their class ids, see `scripts.regions.paint_regions`; a
            voxel belongs to a region where its logit is above 0. None: channels are classes, of which the one
            with the largest logit wins.

    Shape:
        Logits (C, x, y, z) on the network's grid, C up to 256, become class ids (1, X, Y, Z), uint8, on the grid
        of the file.

    Raises:
        ValueError: there are not as many channels as regions.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        orig_keys: KeysCollection,
        transform: Any,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(keys, transform=transform, orig_keys=orig_keys, nearest_interp=False, device="cpu")
        self.regions = regions

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        key, orig_key = self.keys[0], self.orig_keys[0]
        logits, meta = data[key], {}

        def restored(channel: int) -> torch.Tensor:
            volume = super(RestoreLabelMapd, self).__call__({orig_key: data[orig_key], key: logits[channel][None]})[key]
            meta.update(volume.meta)
            return volume.as_tensor()

        if self.regions is None:
            classes = winning_classes(restored, len(logits))
        else:
            check_channels(logits, self.regions)
            classes = paint_regions(lambda channel: restored(channel) > 0, self.regions)
        return {**data, key: MetaTensor(classes, meta=meta)}


def winning_classes(logits_of: Callable[[int], torch.Tensor], n: int) -> torch.Tensor:
    """Find the class with the largest logit of each voxel, against a running maximum.

    Args:
        logits_of: makes the logits of a class; asked for one class at a time.
        n: number of classes, up to 256.

    Shape:
        Logits of any shape become class ids of that shape, uint8.
    """
    best = logits_of(0)
    classes = torch.zeros(best.shape, dtype=torch.uint8)
    for index in range(1, n):
        values = logits_of(index)
        classes[values > best] = index
        torch.maximum(best, values, out=best)
    return classes
