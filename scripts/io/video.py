"""Videos, whose frames become slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.common.errors import InputError
from scripts.common.files import require_regular_file
from scripts.common.names import printable
from scripts.io.memory import require_memory_for


def read_video(path: str | Path) -> np.ndarray:
    """Read the brightness of the frames of a video.

    Args:
        path: of a file that FFmpeg can read.

    Shape:
        Z frames of (H, W) become (W, H, Z), uint8.

    Raises:
        InputError: PyAV is not installed, the file is missing or damaged or holds no picture, or the frames do not fit
            into memory.
    """
    name = printable(path)
    try:
        import av  # optional, as it brings FFmpeg
    except ImportError as error:
        frames = "extract the frames, as with ffmpeg -i VIDEO FOLDER/%04d.png, and give their folder"
        raise InputError(f"{name}: reading a video needs the package av: pip install av; or {frames}.") from error
    try:
        require_regular_file(Path(path), "a video")
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{name}: holds no pictures; give a video.")
            frames = _decode(container, name)
    except InputError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read ({printable(error)}); convert it to MP4 or to pictures.") from error
    if not frames:
        raise InputError(f"{name}: holds no frames; copy or export it again.")
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"{name}: its frames differ in size; convert it to pictures.")
    return np.stack(frames).transpose(2, 1, 0)


def _decode(container: av.container.InputContainer, name: str) -> list[np.ndarray]:  # noqa: F821 (imported where it runs)
    frames = []
    for frame in container.decode(container.streams.video[0]):
        if len(frames) % 100 == 0:  # most files do not tell how many there are
            require_memory_for((frame.width, frame.height, len(frames) + 100), 1, name=name)
        frames.append(frame.to_ndarray(format="gray"))
    return frames
