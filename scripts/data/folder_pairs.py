"""Images and labels of two folders, by the names of their files."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.common.names import is_nifti, is_picture, stem


def pair_folders(
    image_dir: Path, label_dir: Path, problems: list[str], *, label_optional: bool = False, pictures: bool = False
) -> list[dict[str, str]]:
    """Pair images and labels by their names.

    Args:
        image_dir: folder of the images.
        label_dir: folder of the labels.
        problems: files without a counterpart and such of the same name are added to it.
        label_optional: whether there may be no folder of labels.
        pictures: whether files of pictures count, besides NIfTI.
    """
    images, labels = (_by_match_name(folder, problems, pictures=pictures) for folder in (image_dir, label_dir))
    if label_optional and not label_dir.is_dir():
        return [{"image": str(path)} for path in images.values()]
    problems += [f"{path}: no label in {label_dir.name}" for key, path in images.items() if key not in labels]
    problems += [f"{path}: no image in {image_dir.name}" for key, path in labels.items() if key not in images]
    return [{"image": str(images[key]), "label": str(labels[key])} for key in images if key in labels]


def _by_match_name(folder: Path, problems: list[str], *, pictures: bool) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not is_nifti(path) and not (pictures and is_picture(path)):
            continue
        key = re.sub(r"^(img|label)(?=\d)", "", stem(path).removesuffix("_0000"))
        if found.setdefault(key, path) is not path:
            problems.append(f"{path}: the same case as {found[key].name}")
    return found
