"""Convert the BTCV abdomen download to the folders and the datalist that the bundles read.

`python -m scripts.prepare_btcv RawData.zip OUT`
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import math
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
from nibabel.spatialimages import HeaderDataError
from tqdm import tqdm

from scripts.common.errors import InputError, raise_all, reason
from scripts.common.files import atomic_path, remove_leftovers, write_text
from scripts.common.locks import FolderLock
from scripts.io.archives import unreadable_entry, unsafe_entry

logger = logging.getLogger(__name__)

TRAINING_IDS = (*range(1, 11), *range(21, 41))
VALIDATION_IDS = range(35, 41)
TEST_IDS = range(61, 81)
MAX_FILE_BYTES = 1 << 30  # ten times the largest BTCV scan, 512 x 512 x 198 voxels of two bytes
_PADDING_BYTES = 1 << 20  # after the last voxel
_CHUNK_BYTES = 1 << 20
_DAMAGED = (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError, HeaderDataError, NotImplementedError)
_EXPECTED = re.compile(r"(?:.*/)?(Training/img/img|Training/label/label|Testing/img/img)(\d{4})\.nii\.gz", re.ASCII)
_FOLDERS = {
    "Training/img/img": "imagesTr/img",
    "Training/label/label": "labelsTr/label",
    "Testing/img/img": "imagesTs/img",
}


@dataclass(frozen=True)
class _Member:
    """A file of the source, in a zip or a folder."""

    name: str  # in the source, for messages
    size_bytes: int
    crc: Callable[[], int]  # called only if needed: a file in a folder is read for it
    open: Callable[[], AbstractContextManager[BinaryIO]]


def prepare_btcv(source: Path, out_dir: Path) -> Path:
    """Copy a BTCV download to `imagesTr`, `labelsTr` and `imagesTs`, and write `dataset_0.json`.

    The datalist is written last, so that `out_dir` is complete if it exists. A run that was stopped can be repeated:
    files of equal size and CRC-32 are kept. Nothing is written before the whole source has been read and checked.

    Args:
        source: RawData.zip of Synapse, or its unzipped folder, with all or some of the training cases.
        out_dir: folder of the result; created if it is missing.

    Returns:
        The path of `dataset_0.json`.

    Raises:
        InputError: the source is unsafe, encrypted, corrupted or incomplete, holds `out_dir`, holds files that are no
            whole NIfTI volumes or does not fit on the disk; or `out_dir` holds another datalist, or is in use.
        OSError: a file cannot be written.

    Source:
        Synapse syn3193805. The split is that of `dataset_0.json` in MONAI's UNETR and Swin UNETR BTCV tutorials:
        0035 to 0040 for validation, the other 24 for training.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file; give RawData.zip or its unzipped folder")
    if source.is_dir():
        if out_dir.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{out_dir}: lies in {source}, which is not changed; choose another OUT")
        return _prepare(_folder_members(source), source, out_dir)
    if not source.is_file():
        raise InputError(f"{source}: neither a file nor a folder; give RawData.zip or its unzipped folder")
    try:
        with zipfile.ZipFile(source) as archive:
            return _prepare(_zip_members(archive, source), source, out_dir)
    except (*_DAMAGED, UnicodeDecodeError, OSError) as error:
        if getattr(error, "filename", None):  # cannot be opened; without a name: seeking to where an entry cannot be
            raise
        raise InputError(f"{source}: not a zip file, or corrupted ({error}); download it again") from error


def _prepare(members: dict[str, _Member], source: Path, out_dir: Path) -> Path:
    text = json.dumps(_datalist(members, source), indent=2) + "\n"
    path = out_dir / "dataset_0.json"
    folders = [out_dir / name for name in ("imagesTr", "labelsTr", "imagesTs")]
    _refuse_occupied([out_dir, *folders], [path, *(out_dir / target for target in members)], out_dir)
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        raise InputError(f"{path}: lists other cases than {source} gives; remove it, or choose another OUT")
    todo = {target: member for target, member in members.items() if not _is_complete(out_dir / target, member)}
    _refuse_too_large(todo.values(), source, out_dir)
    _refuse_damaged(todo.values(), source)
    with FolderLock(out_dir, setting="OUT"):
        for folder in folders:
            remove_leftovers(folder)
        if todo:
            path.unlink(missing_ok=True)  # the datalist exists only if all its files are complete
        _copy(todo, out_dir)
        if not path.exists():
            write_text(path, text)
    logger.info("prepared %s: %d files copied, %d kept", path, len(todo), len(members) - len(todo))
    return path


def _zip_members(archive: zipfile.ZipFile, source: Path) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    for info in archive.infolist():
        if problem := unsafe_entry(info):
            raise InputError(f"{source}: {problem}; this is not Synapse's RawData.zip, download that")
        target = _target(info.filename)
        if target is None:
            continue
        if target in members:
            raise InputError(f"{source}: {info.filename} and {members[target].name} are the same case; keep one")
        if problem := unreadable_entry(info):
            raise InputError(f"{source}: {problem}; unzip it by hand and give the folder")
        crc = partial(int, info.CRC)
        members[target] = _Member(info.filename, info.file_size, crc, partial(archive.open, info))
    return members


def _folder_members(source: Path) -> dict[str, _Member]:
    roots = [root for root in (source, source / "RawData", source / "Abdomen/RawData") if root.is_dir()]
    root = next((root for root in roots if (root / "Training").is_dir()), source)
    members = {}
    for path in sorted(path for start in _FOLDERS for path in (root / start).parent.glob("*.nii.gz")):
        target = _target(path.relative_to(root).as_posix())
        if target is not None and path.is_file():
            size = path.stat().st_size
            members[target] = _Member(str(path), size, partial(_crc_of, path), partial(path.open, "rb"))
    return members


def _target(name: str) -> str | None:
    match = _EXPECTED.fullmatch(name)
    ids = TEST_IDS if match and match[1].startswith("Testing") else TRAINING_IDS
    return f"{_FOLDERS[match[1]]}{match[2]}.nii.gz" if match and int(match[2]) in ids else None


def _datalist(members: Iterable[str], source: Path) -> dict[str, object]:
    available = set(members)
    pairs = {i: (f"imagesTr/img{i:04d}.nii.gz", f"labelsTr/label{i:04d}.nii.gz") for i in TRAINING_IDS}
    absent = {i: [name for name in pair if name not in available] for i, pair in pairs.items()}
    missing = [name for names in absent.values() if len(names) == 1 for name in names]
    if missing:
        raise InputError(f"{source}: missing {', '.join(missing)}; add them, or remove the other file of these cases")
    cases = {i: dict(zip(("image", "label"), pair, strict=True)) for i, pair in pairs.items() if not absent[i]}
    training = [case for i, case in cases.items() if i not in VALIDATION_IDS]
    validation = [case for i, case in cases.items() if i in VALIDATION_IDS]
    if not cases:
        raise InputError(f"{source}: holds no file like Training/img/img0001.nii.gz; give RawData.zip of the abdomen")
    if not training or not validation:
        lacking, ids = ("validation", "0035..0040") if training else ("training", "0001..0010, 0021..0034")
        raise InputError(f"{source}: no {lacking} cases; add image and label of at least one of {ids}")
    if len(cases) < len(pairs):
        logger.warning("%s: holds %d of %d training cases", source, len(cases), len(pairs))
    test = sorted(name for name in available if name.startswith("imagesTs/"))
    return {"name": "BTCV", "training": training, "validation": validation, "test": test}


def _is_complete(path: Path, member: _Member) -> bool:
    return path.is_file() and path.stat().st_size == member.size_bytes and _crc_of(path) == member.crc()


def _crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _refuse_too_large(members: Iterable[_Member], source: Path, out_dir: Path) -> None:
    sizes = {member.name: member.size_bytes for member in members}
    for name, size in sizes.items():
        if size > MAX_FILE_BYTES:
            raise InputError(f"{source}: {name} unpacks to {size} bytes, no scan has more than {MAX_FILE_BYTES}")
    existing = next(path for path in (out_dir, *out_dir.absolute().parents) if path.exists())
    needed, free = sum(sizes.values()), shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(f"{out_dir}: {needed} bytes needed, {free} free; free space or choose another OUT")


def _refuse_occupied(folders: Iterable[Path], files: Iterable[Path], out_dir: Path) -> None:
    problems = [f"{path}: not a folder" for path in folders if os.path.lexists(path) and not path.is_dir()]
    problems += [f"{path}: not a file" for path in files if os.path.lexists(path) and not path.is_file()]
    raise_all(problems, out_dir, "remove what is in the way, or choose another OUT")


def _refuse_damaged(members: Collection[_Member], source: Path) -> None:
    problems = []
    with tqdm(
        total=sum(m.size_bytes for m in members), unit="B", unit_scale=True, desc="checking", disable=None
    ) as bar:
        for member in members:
            try:
                with member.open() as file, gzip.GzipFile(fileobj=file) as unpacked:
                    problem = _volume_problem(unpacked)
                    if not problem and file.tell() != member.size_bytes:
                        problem = f"ends after {file.tell()} of {member.size_bytes} bytes"
            except (*_DAMAGED, ValueError, OverflowError, LookupError) as error:  # the last three of nibabel
                problem = reason(error)
            if problem:
                problems.append(f"{member.name}: not a whole NIfTI volume ({problem})")
            bar.update(member.size_bytes)
    raise_all(problems, source, "download or copy these files again")


def _volume_problem(file: gzip.GzipFile) -> str:
    """Read a file to its end and describe why it is not the volume that its header announces; "" if it is."""
    start = file.read(nib.Nifti2Header.sizeof_hdr)
    kind = next((kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(start)), None)
    if kind is None:
        return "no NIfTI header"
    header = kind(start[: kind.sizeof_hdr], check=False)
    shape = header.get_data_shape()
    size = header.get_data_offset() + math.prod(shape) * header.get_data_dtype().itemsize
    if min(shape, default=0) < 1 or size > MAX_FILE_BYTES:
        return f"its header announces {' x '.join(map(str, shape))} voxels, a scan has at most {MAX_FILE_BYTES} bytes"
    read = len(start)
    while read <= size + _PADDING_BYTES and (chunk := file.read(_CHUNK_BYTES)):
        read += len(chunk)
    return "" if size <= read <= size + _PADDING_BYTES else f"its header announces {size} bytes, it holds {read}"


def _copy(members: dict[str, _Member], out_dir: Path) -> None:
    total = sum(member.size_bytes for member in members.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="copying", disable=None) as bar:
        for target, member in members.items():
            with atomic_path(out_dir / target) as temporary:
                with member.open() as incoming, temporary.open("wb") as outgoing:
                    while chunk := incoming.read(_CHUNK_BYTES):
                        bar.update(outgoing.write(chunk))
                if temporary.stat().st_size != member.size_bytes:
                    raise InputError(f"{member.name}: ends early; download it again")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; an error in the input ends it with exit code 2 and one line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_btcv", description=__doc__)
    parser.add_argument("source", type=Path, help="Synapse's RawData.zip of the abdomen, or its unzipped folder")
    parser.add_argument("out", type=Path, help="folder for imagesTr, labelsTr, imagesTs and dataset_0.json")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare_btcv(args.source, args.out)
    except InputError as error:
        parser.exit(2, f"prepare_btcv: error: {error}\n")
    except OSError as error:
        parser.exit(2, f"prepare_btcv: error: {error}; fix this and run again to resume\n")
    except KeyboardInterrupt:
        parser.exit(130, "prepare_btcv: stopped; run again to resume\n")
    return 0
