import stat
import zipfile

import pytest

from scripts.io.archives import unreadable_entry, unsafe_entry


def entry(name, kind=0, method=zipfile.ZIP_DEFLATED, flags=0):
    info = zipfile.ZipInfo(name)
    info.orig_filename, info.external_attr, info.compress_type, info.flag_bits = name, kind << 16, method, flags
    return info


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/a", "C:a", "a\\b", "a\0b", "a\nb"])
def test_names_that_lead_elsewhere_are_unsafe(name):
    assert unsafe_entry(entry(name)) == f"entry {name!r} has an unsafe name"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_unsafe(kind):
    assert unsafe_entry(entry("a", kind)) == "entry 'a' is a link or a device"


@pytest.mark.parametrize("kind", [0, stat.S_IFREG, stat.S_IFDIR])
def test_files_and_folders_are_safe(kind):
    assert unsafe_entry(entry("a/b..c.dcm", kind)) == ""


def test_what_needs_a_password_or_another_program_is_unreadable():
    assert unreadable_entry(entry("a")) == ""
    assert unreadable_entry(entry("a", flags=1)) == "a is encrypted"
    assert unreadable_entry(entry("a", method=zipfile.ZIP_LZMA)) == "a is compressed by method 14"
