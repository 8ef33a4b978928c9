"""Finding the cases of an input of pictures, videos and volumes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from scripts.common.names import VIDEO_SUFFIXES, is_nifti, is_picture, is_video
from scripts.data.inputs import Case, find_volumes, list_cases
from scripts.io.dicom_pictures import is_dicom_picture

_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, ('.dcm', *VIDEO_SUFFIXES)))})$", re.IGNORECASE)


def list_pictures(source: str | Path, **options: Any) -> list[Case]:
    """List the cases of a file, a folder or a datalist, of which any may be pictures.

    Args:
        source: as `scripts.data.inputs.list_cases`, or what `find_images` finds.
        options: as `list_cases`.
    """
    return list_cases(source, find=find_images, pictures=True, **options)


def find_images(path: Path) -> list[Case]:
    """Find pictures, and volumes as `find_volumes`; of a folder that holds both, all of them.

    Videos are pictures, too, and DICOM files that have no place in the patient, such as ultrasound.

    Args:
        path: of a file or folder.

    Returns:
        One `{"image": path, "case": path}` per image.

    Raises:
        InputError: there is neither.
    """
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    pictures = [{"image": str(file), "case": str(file)} for file in entries if is_picture(file)]
    others = [file for file in entries if not file.name.startswith(".") and (is_video(file) or is_dicom_picture(file))]
    pictures += [{"image": str(file), "case": _SUFFIX.sub("", str(file))} for file in others]
    path.stat()  # a picture that is missing is one of a wrong path
    return pictures + ([] if pictures and not any(map(is_nifti, entries)) else find_volumes(path))
