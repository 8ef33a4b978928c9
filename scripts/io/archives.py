"""Entries of zip files from others: what is unsafe in them, or cannot be read."""

from __future__ import annotations

import re
import stat
import zipfile
from pathlib import PurePosixPath

_ENCRYPTED = 0x1 | 0x40  # flag bits of traditional and strong encryption


def unsafe_entry(info: zipfile.ZipInfo) -> str:
    """Return why an entry may lead out of the folder that it is unpacked to; "" if it cannot.

    >>> unsafe_entry(zipfile.ZipInfo("../evil"))
    "entry '../evil' has an unsafe name"
    """
    name = info.orig_filename  # `filename` ends at the first NUL
    kind = stat.S_IFMT(info.external_attr >> 16)
    path = PurePosixPath(name)
    drive = re.match(r"[A-Za-z]:", name)
    if path.is_absolute() or drive or ".." in path.parts or "\\" in name or not name.isprintable():
        return f"entry {name!r:.200} has an unsafe name"
    return "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else f"entry {name!r:.200} is a link or a device"


def unreadable_entry(info: zipfile.ZipInfo) -> str:
    """Return why an entry cannot be read without a password or another program; "" if it can."""
    if info.flag_bits & _ENCRYPTED:
        return f"{info.filename} is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"{info.filename} is compressed by method {info.compress_type}"
    return ""
