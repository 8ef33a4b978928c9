"""Pictures (PNG, JPEG and the like) and flat NIfTI files, read as volumes of one slice, and label maps as PNG."""

from __future__ import annotations

import colorsys
import logging
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.common.files import atomic_path
from scripts.common.label_maps import as_label_array, renumber
from scripts.common.names import is_nifti, is_picture, printable
from scripts.io.loading import LoadVolumed
from scripts.io.nifti import StoredVolume, read_nifti
from scripts.io.writing import SaveLabelMapd

if TYPE_CHECKING:
    import PIL.Image

MAX_PIXELS = 100_000_000
AT_MOST = f"give a picture of at most {MAX_PIXELS}"
PICTURE_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Columns run to the patient's left, rows to the back, as radiologists see a slice; a pixel is taken as 1 x 1 mm."""
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa")
_said: set[str] = set()
logger = logging.getLogger(__name__)


class LoadPictureOrVolumed(LoadVolumed):
    """Read pictures and flat NIfTI files as volumes of one slice, and volumes as `LoadVolumed`; see there.

    A picture of H rows and W columns becomes (1, W, H, 1). Colours become gray, which is logged once. Of a label map,
    values or palette entries are the class ids; one that holds 0 and 255 alone is taken as 0 and 1, with a warning.

    Args:
        keys: keys of the images and label maps.
        keep_255: leave label maps of 0 and 255 as they are.
        options: as `LoadVolumed`.

    Raises:
        InputError: see `read_picture` and `LoadVolumed`.
    """

    def __init__(self, keys: KeysCollection, *, keep_255: bool = False, **options: Any) -> None:
        super().__init__(keys, **options)
        self.keep_255 = keep_255

    def read_file(self, path: str | Path, *, is_image: bool) -> StoredVolume:
        """Read a file, or a folder as a DICOM series."""
        if is_picture(Path(path)):
            return read_picture(path, is_label=not is_image, keep_255=self.keep_255)
        volume = read_nifti(path, flat=True) if is_nifti(Path(path)) else super().read_file(path, is_image=is_image)
        return volume if is_image or self.keep_255 else _binary_of_255(volume, path)


def read_image(path: str | Path) -> MetaTensor:
    """Read an image as `LoadPictureOrVolumed`: (1, X, Y, Z)."""
    return LoadPictureOrVolumed("image").read(path, is_image=True)


def read_picture(path: str | Path, *, is_label: bool = False, keep_255: bool = False) -> StoredVolume:
    """Read a picture as a volume of one slice.

    Args:
        path: of the file.
        is_label: whether its values are class ids, which are not converted.
        keep_255: see `LoadPictureOrVolumed`.

    Shape:
        (H, W) or (H, W, colours) becomes (W, H, 1).

    Raises:
        InputError: the file is missing, damaged, too large or of several frames, or a label map is of colours or JPEG.
    """
    from PIL import Image, UnidentifiedImageError  # here, as programs that import a transform may lack it

    name = printable(path)
    if is_label and Path(path).suffix.lower() in (".jpg", ".jpeg"):
        raise InputError(f"{name}: JPEG changes the values of pixels, which a label map needs; save it as PNG.")
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"{name}: is a folder, a pipe or a device; give a picture.")
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"{name}: has {picture.width} x {picture.height} pixels; {AT_MOST}.")
            if (frames := getattr(picture, "n_frames", 1)) > 1:
                raise InputError(f"{name}: has {frames} frames; give one.")
            values = _label_values(picture, name) if is_label else _gray_values(picture, name)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: has too many pixels; {AT_MOST}.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture that can be read; save it as PNG.") from error
    except (OSError, SyntaxError, EOFError, OverflowError) as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{name}: no such file; correct the path.") from error
        raise InputError(f"{name}: cannot be read whole ({printable(error)}); copy or export it again.") from error
    volume = StoredVolume(np.ascontiguousarray(values.T[..., None]), PICTURE_AFFINE.copy())
    return _binary_of_255(volume, path) if is_label and not keep_255 else volume


def _gray_values(picture: PIL.Image.Image, name: str) -> np.ndarray:
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode in _COLOUR_MODES:
        _say_once(f"{name}: colours are converted to gray; so are those of other pictures")
        picture = picture.convert("RGB").convert("L")
    if picture.mode == "LA":
        picture = picture.getchannel("L")
    return _plain_values(picture)


def _label_values(picture: PIL.Image.Image, name: str) -> np.ndarray:
    if picture.mode in ("P", "L", "1", "I", "I;16", "I;16B", "I;16L"):
        return _plain_values(picture)
    bands = np.asarray(picture.convert("RGB"))
    if (bands != bands[..., :1]).any():
        raise InputError(f"{name}: is a label map of colours; save one with a class id per pixel, gray or by palette.")
    return bands[..., 0]


def _plain_values(picture: PIL.Image.Image) -> np.ndarray:
    values = np.asarray(picture)
    return values.astype(np.uint8 if values.dtype == bool else values.dtype.newbyteorder("="))


def _binary_of_255(volume: StoredVolume, path: str | Path) -> StoredVolume:
    """Replace 255 by 1 in a label map that holds nothing else but 0."""
    foreground = volume.stored != 0
    if not foreground.any() or (volume.stored[foreground] != 255).any():
        return volume
    logger.warning("%s: holds 0 and 255 alone, taken as 0 and 1", printable(path))
    return StoredVolume(foreground.astype(np.uint8), volume.affine, header=volume.header)


def _say_once(message: str) -> None:
    kind = message.partition(": ")[2]
    if kind not in _said:
        _said.add(kind)
        logger.warning(message)


class SavePictureOrLabelMapd(SaveLabelMapd):
    """Write the label map of a picture as PNG of the same size, that of any other image as `SaveLabelMapd`; see there.

    The PNG has a palette: its values are the class ids, and programs show them in colours. With ids above 255 it is
    gray, of 16 bits.
    """

    def write(self, label_map: MetaTensor) -> None:
        """Write one label map."""
        if not is_picture(Path(str(label_map.meta.get("filename_or_obj", "")))):
            super().write(label_map)
            return
        case = self.case_of(label_map)
        labels = as_label_array(renumber(label_map[0], self.values), name=case)
        write_label_picture(labels[..., 0].T, self.output_dir / f"{case}_{self.postfix}.png")


def write_label_picture(labels: np.ndarray, path: Path) -> None:
    """Write class ids from 0 to 65535, (H, W), as PNG; see `SavePictureOrLabelMapd`."""
    from PIL import Image

    small = labels.max(initial=0) <= np.iinfo(np.uint8).max
    picture = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8 if small else np.uint16))
    if small:
        picture.putpalette([part for class_id in range(256) for part in _palette_color(class_id)])
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _palette_color(class_id: int) -> tuple[int, ...]:
    """Return black for the background, else a bright colour of a hue far from those of the ids beside it."""
    rgb = colorsys.hsv_to_rgb(class_id * 0.618034 % 1, 0.75, 1.0 if class_id else 0.0)
    return tuple(round(255 * part) for part in rgb)
