"""Names of cases and of their files."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg")
DICOM_INDEX = "DICOMDIR"
"""File that lists the series of a CD."""
MAX_NAME_BYTES = 200
"""File systems take 255 bytes; `_preview.png` and the like are added to the name of a case."""
_LISTED = 20
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
logger = logging.getLogger(__name__)


def is_nifti(path: Path) -> bool:
    """Return whether a file is a NIfTI volume by its name; hidden files are not."""
    return path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")


def is_picture(path: Path) -> bool:
    """Return whether a file is a picture by its name, such as PNG; hidden files are not."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def is_video(path: Path) -> bool:
    """Return whether a file is a video by its name; hidden files are not."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def is_dicom(path: Path) -> bool:
    """Return whether a path is a file with the prefix of DICOM, and not the index of a CD."""
    if path.name == DICOM_INDEX or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def stem(path: str | Path) -> str:
    """Return the name of a file without its NIfTI or picture suffix, or the name of a DICOM folder.

    >>> stem("imagesTr/img0001.nii.gz")
    'img0001'
    """
    name = Path(os.path.normpath(Path.cwd() / path)).name
    for suffix in (*NIFTI_SUFFIXES, *PICTURE_SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def printable(path: object) -> str:
    r"""Return a path as one line for messages; characters that cannot be printed are escaped.

    Bytes of a file name that are not UTF-8 are such characters: writing them to a file raises `UnicodeEncodeError`.

    >>> print(printable("a\nb.nii"))
    a\nb.nii
    """
    text = str(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Sequence[str]) -> str:
    """Return names with commas between them, at most 20, for messages."""
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(printable, names[:_LISTED])) + more


def listed_unknown(names: Sequence[str], known: Collection[str]) -> str:
    """Return names as `listed`, each with the most similar known one, if any is similar.

    >>> listed_unknown(["persn_01", "x"], ["person_01", "person_02"])
    'persn_01 (person_01?), x'
    """
    nearest = {name: get_close_matches(name, known, n=1) for name in names[:_LISTED]}
    hints = [f"{name} ({nearest[name][0]}?)" if nearest.get(name) else name for name in names]
    return listed(hints)


def safe_name(name: str) -> str:
    r"""Return a name that is safe in file names on Linux, macOS and Windows, and in tables and messages.

    A safe name stays itself. In any other

    - each character that cannot be printed or is one of `<>:"/\|?*` becomes an underscore;
    - so do dots, dashes, spaces and `=+@` at the beginning, which make hidden files, options and formulas, and dots and
      spaces at the end, each run of them one underscore;
    - a device name of Windows, such as `CON`, gets an underscore in front;
    - what is longer than `MAX_NAME_BYTES` in UTF-8 is cut and ends in eight digits of its SHA-256.

    >>> [safe_name(name) for name in ("p1.v2", "../p1", "a:b", "con.1", "-p1 ", "")]
    ['p1.v2', '__p1', 'a_b', '_con.1', '_p1_', '_']
    """
    kept = re.sub(r'[<>:"/\\|?*]', "_", name)
    if not kept.isprintable():
        kept = "".join(c if c.isprintable() else "_" for c in kept)
    safe = re.sub(r"^[-.=+@ ]+|[. ]+$", "_", kept) or "_"
    safe = f"_{safe}" if _RESERVED.fullmatch(safe) else safe
    if len(safe.encode()) <= MAX_NAME_BYTES:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe.encode()[: MAX_NAME_BYTES - 9].decode(errors='ignore')}_{digest}"


def unique_names(paths: Sequence[str]) -> list[str]:
    """Name each volume, so that no result overwrites another, also where `A` and `a` are the same file.

    Args:
        paths: paths of the volumes; equal paths get equal names.

    Returns:
        The stems, made safe by `safe_name`. Repeated stems are prefixed with their folders below the common one; if
        names still repeat, a number is appended, but not to a stem that was safe if the other was not.

    >>> unique_names(["a/ct.nii.gz", "b/ct.nii.gz", "b/mr.nii.gz"])
    ['a_ct', 'b_ct', 'mr']
    """
    stems = {path: stem(path) for path in paths}
    safe = {path: safe_name(name) for path, name in stems.items()}
    repeats = Counter(map(_folded, safe.values()))
    common = Path(os.path.commonpath([Path(path).parent for path in stems])) if stems else Path()
    names: dict[str, str] = {}
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    for path in sorted(stems, key=lambda path: safe[path] != stems[path]):
        base = safe[path]
        if repeats[_folded(base)] > 1:
            base = safe_name("_".join([*Path(path).relative_to(common).parts[:-1], stems[path]]))
        names[path] = base
        while _folded(names[path]) in taken:
            numbers[base] += 1
            names[path] = f"{base}_{numbers[base] + 1}"
        taken.add(_folded(names[path]))
        if safe[path] != stems[path]:
            logger.info("%s: its case is named %s", printable(path), names[path])
    return [names[path] for path in paths]


def _folded(name: str) -> str:
    """Return a name as file systems compare it that ignore case and how accents are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def name_path(image: str | Sequence[str]) -> str:
    """Return the path that an image is named after: its own, or the common beginning of several.

    Args:
        image: a path, or the paths of the files of one image, such as `p1/p1-t1n.nii.gz` and `p1/p1-t1c.nii.gz`.

    Returns:
        The path; for several, the common beginning of their names up to a dash or underscore, or else their folder.

    >>> name_path(["p1/p1-t1n.nii.gz", "p1/p1-t1c.nii.gz"])
    'p1/p1'
    """
    if isinstance(image, str):
        return image
    folder, stems = Path(image[0]).parent, [stem(path) for path in image]
    equal = takewhile(lambda letters: len(set(letters)) == 1, zip(*stems, strict=False))
    common = "".join(letters[0] for letters in equal)
    whole_words = common if len(image) == 1 else re.sub(r"[^-_]*$", "", common).rstrip("-_")
    return str(folder / whole_words) if whole_words else str(folder)
