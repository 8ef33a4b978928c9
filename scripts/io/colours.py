"""Pictures of colours, which become gray."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import PIL.Image

_COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa")
_said: set[str] = set()
logger = logging.getLogger(__name__)


def to_gray(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Return a picture without colours and transparency.

    The first picture of colours is logged.

    Args:
        picture: of any mode; gray ones keep their depth.
        name: of the file, for the log.
    """
    if picture.mode in _COLOUR_MODES:
        _say_once(f"{name}: colours are converted to gray; so are those of other pictures")
        return picture.convert("RGB").convert("L")
    return picture.getchannel("L") if picture.mode == "LA" else picture


def _say_once(message: str) -> None:
    kind = message.partition(": ")[2]
    if kind not in _said:
        _said.add(kind)
        logger.warning(message)
