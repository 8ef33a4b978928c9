"""Write files whole or not at all, and read volumes to their last byte."""

import gzip
import os
import re
import secrets
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

_TEMPORARY_NAME = re.compile(r"\.tmp-[0-9a-f]{16}(\..*)?")
_DAMAGED_HEADER = (ImageFileError, HeaderDataError, OverflowError, MemoryError)
_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, *_DAMAGED_HEADER)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that becomes ``path`` when the block ends well.

    The temporary name keeps the last two suffixes (``.tmp-0123456789abcdef.nii.gz``), because writers such as
    nibabel choose the format by them. Missing parent folders are made. Where ``path`` is a symbolic link, the
    link is replaced, not the file that it points to.

    Args:
        path: the final name; a file already there stays whole until it is replaced in one step.

    Yields:
        The path to write to. Nothing is there yet, so the writer's own umask decides the file's mode.

    Raises:
        OSError: the block wrote nothing there, the disk is full, or ``path`` is a folder.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".tmp-{secrets.token_hex(8)}{''.join(final.suffixes[-2:])}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(final)
    except BaseException:  # Ctrl-C and SystemExit too must leave nothing behind
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all; see ``atomic_path``."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files that a killed process left in ``folder``.

    Call it only where no other process is writing: a file still being written looks the same.

    Args:
        folder: looked at without its subfolders; it need not exist.

    Returns:
        The files removed, sorted.
    """
    here = Path(folder)
    files = sorted(here.iterdir()) if here.is_dir() else []
    leftovers = [path for path in files if _TEMPORARY_NAME.fullmatch(path.name)]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers


def require_writable(folder: str | os.PathLike[str]) -> Path:
    """Make ``folder`` and try a nameless file in it, before hours of work end at the first save.

    Args:
        folder: where results will be written; missing parents are made.

    Returns:
        The folder.

    Raises:
        ValueError: it cannot be made or written.
    """
    here = Path(folder)
    try:
        here.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        raise ValueError(f"{here}: cannot be written ({error.strerror}); set another output folder") from error
    return here


def _flush_to_disk(path: Path) -> None:
    """Wait until the bytes are on disk: a rename may otherwise survive a power cut that its data does not."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@dataclass(frozen=True)
class StoredVolume:
    """A volume as its file stores it: values are ``stored * slope + inter``.

    Attributes:
        stored: (X, Y, Z), in the type of the file, which takes far less memory than scaled values.
        affine: (4, 4), voxel indices to mm in RAS.
        slope: factor without unit.
        inter: offset in the unit of the values.
    """

    stored: np.ndarray
    affine: np.ndarray
    slope: float
    inter: float


def read_nifti(path: str | os.PathLike[str]) -> StoredVolume:
    """Read a 3-D NIfTI file to its end, so that gzip compares its checksum too.

    ``nibabel.load`` stops after the last voxel, so a damaged stream of the right length passes there.

    Args:
        path: a .nii or .nii.gz file.

    Returns:
        The volume, unscaled.

    Raises:
        ValueError: why the file cannot be used, without its path.
    """
    try:
        image, stored = _read_whole(Path(path))
    except FileNotFoundError as error:
        raise ValueError("is missing") from error
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot be read whole ({reason})") from error
    if len(image.shape) != 3 or min(image.shape) < 1:
        raise ValueError(f"has shape {image.shape}, need three dimensions")
    if stored.dtype.kind not in "iuf":
        raise ValueError(f"has values of type {stored.dtype}, need integers or floats")
    affine = image.affine
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError("has an affine that is not finite or not invertible")
    return StoredVolume(stored, affine, float(image.dataobj.slope), float(image.dataobj.inter))


def _read_whole(path: Path) -> tuple[nib.Nifti1Image, np.ndarray]:
    if path.stat().st_size == 0:
        raise ValueError("0 bytes")
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        header = file.read(nib.Nifti2Header.sizeof_hdr)
        classes = [c for c in (nib.Nifti1Image, nib.Nifti2Image) if c.header_class.may_contain_header(header)]
        if not classes:
            raise ValueError("not a NIfTI file")
        file.seek(0)
        image = classes[0].from_stream(file)
        stored = image.dataobj.get_unscaled()
        while file.read(1 << 20):
            pass
    return image, stored
