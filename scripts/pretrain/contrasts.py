"""Images of one to four contrasts, each put into its own channel."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.common.names import printable, stem
from scripts.io.loading import LoadVolumed, as_tensor, read_volume
from scripts.io.nifti import StoredVolume, check_intensities
from scripts.ukbb.archive import CHANNELS

SINGLE = "in_phase"
"""The channel of an image of one contrast that nobody names, MR or CT: it shows fat and water, as most images do."""


class LoadContrastsd(LoadVolumed):
    """Read images of one to four contrasts; the channels of contrasts that an image lacks are 0.

    The contrasts of a file are those that the case names in `contrast`, such as "water" or "fat,water", or else those
    that a JSON file beside it lists under `channels`, as `scripts.ukbb.prepare` writes it; both have to agree. A
    file of four channels that nobody names is taken to be in the order of `CHANNELS`, and one of a single channel to be
    of `contrast`.

    Args:
        keys: keys of the paths: NIfTI files (X, Y, Z) or (X, Y, Z, C), or DICOM folders, of one contrast.
        contrast: channel of an image of one contrast whose contrast is not named.
        image_keys: those of `keys` that hold an image; the others are read as `LoadVolumed` does.
        allow_missing_keys: skip keys that the case lacks.

    Shape:
        Images become MetaTensors (4, X, Y, Z), float32; others (1, X, Y, Z).

    Raises:
        InputError: as `LoadVolumed`; a contrast is unknown or named twice, there is not one name for each channel, or
            a channel is constant. A channel of zeros is a contrast that the image lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        contrast: str = SINGLE,
        image_keys: Sequence[str] = ("image",),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, image_keys=image_keys, allow_missing_keys=allow_missing_keys)
        check_names([contrast], "the setting")
        self.contrast = contrast

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the volumes of a case."""
        named = str(data.get("contrast", ""))
        keys = [key for key in self.key_iterator(dict(data)) if key in self.image_keys]
        images = {key: self.read_image(data[key], named=named) for key in keys}
        return super().__call__({**data, **images})

    def read_image(self, path: str | Path | MetaTensor, *, named: str = "") -> MetaTensor:
        """Read one image, (4, X, Y, Z); or take one in memory, (X, Y, Z), (1, X, Y, Z) or (4, X, Y, Z)."""
        if isinstance(path, MetaTensor):
            image = path[None] if path.ndim == 3 else path
            names = names_of("the volume in memory", len(image), named=named, single=self.contrast)
            return MetaTensor(_in_place(image.as_tensor(), names), meta=image.meta)
        volume, names = read_contrasts(path, named=named, single=self.contrast)
        values = torch.from_numpy(volume.values().reshape(*volume.grid.shape, len(names)))
        return as_tensor(volume, _in_place(values.movedim(-1, 0), names), path)


def read_image(item: Mapping[str, Any], path: str, *, contrast: str = SINGLE) -> StoredVolume:
    """Read and check the image of a case, for `scripts.data.case_checks.check_cases`."""
    return read_contrasts(path, named=str(item.get("contrast", "")), single=contrast)[0]


def shown_channel(path: str) -> MetaTensor:
    """Read the channel of an image that pictures show, (1, X, Y, Z): in-phase, or else the first."""
    volume, names = read_contrasts(path)
    values = volume.values().reshape(*volume.grid.shape, len(names))
    channel = names.index(SINGLE) if SINGLE in names else 0
    return as_tensor(volume, torch.from_numpy(np.ascontiguousarray(values[..., channel]))[None], path)


def read_contrasts(path: str | Path, *, named: str = "", single: str = SINGLE) -> tuple[StoredVolume, tuple[str, ...]]:
    """Read an image and name its channels.

    Args:
        path: see `LoadContrastsd`.
        named: what the case says in `contrast`; "" for nothing.
        single: contrast of an image of one channel that nobody names.

    Raises:
        InputError: see `LoadContrastsd`.
    """
    volume = read_volume(path, with_channels=True)
    count = volume.stored.shape[3] if volume.stored.ndim == 4 else 1
    beside = _named_beside(Path(path))
    names = names_of(printable(path), count, named=named or beside, single=single)
    if beside and named and beside != ",".join(names):
        why = f"contrast names {','.join(names)}, but the JSON file beside it {printable(beside)}"
        raise InputError(f"{printable(path)}: {why}; correct one of them.")
    check_intensities(volume, printable(path))
    for name, channel in zip(names, np.moveaxis(volume.stored.reshape(*volume.grid.shape, count), -1, 0), strict=True):
        if channel.min() == channel.max() and channel.flat[0] * volume.slope + volume.inter != 0:
            raise InputError(f"{printable(path)}: its channel {name} is constant; export it again, or leave it 0.")
    return volume, names


def names_of(where: str, count: int, *, named: str, single: str) -> tuple[str, ...]:
    """Return the contrasts of the channels of an image.

    Args:
        where: the image, for messages.
        count: number of its channels.
        named: their names with commas between them; "" if nobody names them.
        single: see `read_contrasts`.
    """
    names = tuple(name.strip() for name in named.split(",")) if named else ()
    names = names or {1: (single,), len(CHANNELS): CHANNELS}.get(count, ())
    if not names:
        raise InputError(
            f"{where}: has {count} channels, and nothing names them; name them in contrast of its entry in the "
            f"datalist, some of {','.join(CHANNELS)}."
        )
    check_names(names, where)
    if len(names) != count:
        raise InputError(
            f"{where}: has {count} channels, but {len(names)} are named: {', '.join(names)}; correct them."
        )
    return names


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse contrasts that are unknown or named twice.

    Raises:
        InputError: names them and `where` they are from.
    """
    for name in names:
        if name not in CHANNELS:
            raise InputError(f"{where}: contrast is {printable(name)!r:.100}: give one of {', '.join(CHANNELS)}.")
    if len(set(names)) < len(names):
        raise InputError(f"{where}: names a contrast twice ({', '.join(names)}); give each channel its own.")


def _named_beside(path: Path) -> str:
    """Return the names that the JSON file beside an image lists; "" if there is none, or none that lists channels."""
    facts = path.with_name(f"{stem(path)}.json")
    if not facts.is_file():
        return ""
    try:
        names = json.loads(facts.read_bytes())
        names = names.get("channels", []) if isinstance(names, dict) else []
        return ",".join(names)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        fix = f'correct its list "channels", such as {json.dumps(CHANNELS)}, or remove the file'
        raise InputError(f"{printable(facts)}: does not say what the channels are ({error}); {fix}.") from error


def _in_place(values: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Put channels (C, X, Y, Z) where `CHANNELS` has them, (4, X, Y, Z)."""
    image = torch.zeros((len(CHANNELS), *values.shape[1:]), dtype=torch.float32)
    image[[CHANNELS.index(name) for name in names]] = values.float()
    return image
