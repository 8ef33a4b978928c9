"""Reading the Dixon series of an archive of UK Biobank's field 20201; nothing is unpacked to disk."""

from __future__ import annotations

import csv
import io
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pydicom

from scripts.common.errors import InputError
from scripts.common.names import listed, printable
from scripts.io.archives import unreadable_entry, unsafe_entry
from scripts.io.dicom import parse_slice

CONTRASTS = {"F": "fat", "W": "water", "in": "in_phase", "opp": "opposed_phase"}
"""Last part of a series' name to what it shows, in the order of the channels."""
CHANNELS = tuple(CONTRASTS.values())
MAX_ARCHIVE_BYTES = 1 << 30  # twenty times an archive of field 20201
MAX_ENTRY_BYTES = 1 << 24  # two hundred times a slice of 224 x 174 voxels
MAX_ENTRIES = 20_000  # 24 series have about 1,400 slices
_DIXON = re.compile(r"(?:.*_)?Dixon_(?:(?P<hold>noBH|BH)\w*_)?(?P<part>in|opp|F|W)", re.IGNORECASE)
_PARTS = {part.lower(): name for part, name in CONTRASTS.items()}
_TEXTS = (".csv", ".cvs", ".txt", ".tsv")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError, OSError, ValueError)


@dataclass(frozen=True)
class Series:
    """One contrast of one station, as scanned once.

    Attributes:
        contrast: one of `CHANNELS`.
        name: SeriesDescription, such as `Dixon_BH_17s_F`.
        breath_hold: whether the name says so; None if it says nothing.
        time_s: SeriesDate and SeriesTime in seconds; 0 if unknown.
        slices: with their pixels.
    """

    contrast: str
    name: str
    breath_hold: bool | None
    time_s: float
    slices: list[pydicom.Dataset]


def read_series(path: Path) -> tuple[list[Series], list[str]]:
    """Read the Dixon series of an archive.

    The name of a series is the SeriesDescription of its slices or, where that is none of a Dixon series, what a row of
    the manifest says of the file. Rows are searched for a name of a series and one of a file: the manifests of UK
    Biobank have heads that do not fit their columns, and one is called `manifest.cvs`.

    Args:
        path: `<eid>_20201_<instance>_<array>.zip`.

    Returns:
        The series, and the names of all others in the archive.

    Raises:
        InputError: the archive is truncated, encrypted, unsafe, too large, or holds no Dixon series.
    """
    name = printable(path)
    try:
        if (size := path.stat().st_size) > MAX_ARCHIVE_BYTES:
            raise InputError(f"{name}: has {size} bytes, an archive of field 20201 at most {MAX_ARCHIVE_BYTES}.")
        with zipfile.ZipFile(path) as archive:
            infos = _checked_entries(archive, name)
            named = _manifest_names(archive, infos)
            slices = list(_slices(archive, infos, name))
    except InputError:
        raise
    except _DAMAGED as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{name}: not a whole zip file ({printable(why)}); download it again.") from error
    found, others = _grouped(slices, named)
    if not found:
        held = f"its series are {listed(sorted(others))}" if others else "it holds no DICOM files"
        raise InputError(f"{name}: no series such as Dixon_noBH_F, {held}; give archives of field 20201.")
    return found, sorted(others)


def _checked_entries(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """Return the files of an archive, each content once.

    Raises:
        InputError: an entry is unsafe, encrypted or too large, or there are too many.
    """
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > MAX_ENTRIES:
        raise InputError(f"{name}: holds {len(infos)} files, an archive of field 20201 at most {MAX_ENTRIES}.")
    for info in infos:
        if problem := unsafe_entry(info):
            raise InputError(f"{name}: {problem}; this is not an archive of UK Biobank, download it again.")
        if problem := unreadable_entry(info):
            raise InputError(f"{name}: {printable(problem)}; decrypt it, or download it again.")
        if info.file_size > MAX_ENTRY_BYTES:
            large = f"{printable(info.filename)} unpacks to {info.file_size} bytes"
            raise InputError(f"{name}: {large}, no slice has more than {MAX_ENTRY_BYTES}; download it again.")
    if (total := sum(info.file_size for info in infos)) > MAX_ARCHIVE_BYTES:
        raise InputError(f"{name}: unpacks to {total} bytes, an archive of field 20201 to {MAX_ARCHIVE_BYTES} at most.")
    return list({(info.CRC, info.file_size): info for info in infos}.values())


def _manifest_names(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> dict[str, str]:
    """Return file to name of its Dixon series, as the manifest says."""
    files, named = {Path(info.filename).name for info in infos}, {}
    for info in infos:
        if info.filename.lower().endswith(_TEXTS):
            text = archive.read(info).decode("utf-8", errors="replace").replace("\0", "")
            for row in csv.reader(io.StringIO(text), delimiter="\t" if "\t" in text else ","):
                cells = [cell.strip() for cell in row]
                series = next((cell for cell in cells if _DIXON.fullmatch(cell)), None)
                file = next((cell for cell in cells if cell in files), None)
                if series and file:
                    named[file] = series
    return named


def _slices(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], name: str) -> Iterator[pydicom.Dataset]:
    """Yield the DICOM files of an archive; zipfile compares the checksum of each."""
    for info in infos:
        entry = printable(info.filename)
        if info.filename.lower().endswith(_TEXTS):
            continue
        tags = ("SeriesDescription", "SeriesDate", "SeriesTime")
        dataset = parse_slice(archive.read(info), f"{name}/{entry}", tags=tags)
        if dataset is not None:
            yield dataset
        elif entry.lower().endswith(".dcm"):
            raise InputError(f"{name}/{entry}: is not a DICOM file; download the archive again.")


def _grouped(slices: list[pydicom.Dataset], named: Mapping[str, str]) -> tuple[list[Series], set[str]]:
    """Return the Dixon series of slices, and the names of the other series."""
    by_uid = defaultdict(list)
    for item in slices:
        by_uid[str(item.get("SeriesInstanceUID", ""))].append(item)
    found, others = [], set()
    for own in by_uid.values():
        names = [_series_name(item, named) for item in own]
        name = Counter(names).most_common(1)[0][0]
        match = _DIXON.fullmatch(name)
        if match is None:
            others.add(name or "without a name")
            continue
        hold = match["hold"] and match["hold"].lower() == "bh"
        found.append(Series(_PARTS[match["part"].lower()], name, hold, _time_s(own[0]), own))
    return found, others


def _series_name(item: pydicom.Dataset, named: Mapping[str, str]) -> str:
    own = str(item.get("SeriesDescription") or "").strip()
    return own if _DIXON.fullmatch(own) else named.get(Path(item.filename).name, own)


def _time_s(item: pydicom.Dataset) -> float:
    """Return when a series was taken, in seconds; 0 if the header does not tell."""
    date, time = str(item.get("SeriesDate") or "19700101"), str(item.get("SeriesTime") or "")
    whole, _, fraction = time.partition(".")
    try:
        start = datetime.strptime(date + whole, "%Y%m%d%H%M%S")
        return (start - datetime(1970, 1, 1)).total_seconds() + float(f"0.{fraction or 0}")
    except ValueError:
        return 0.0
