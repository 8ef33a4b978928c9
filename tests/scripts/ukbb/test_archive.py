import zipfile

import pytest

from scripts.common.errors import InputError
from scripts.ukbb import archive as module
from scripts.ukbb.archive import CHANNELS, read_series


def entry_of(path, number=0):
    with zipfile.ZipFile(path) as packed:
        return packed.infolist()[number]


def rewritten(path, out, *, change=lambda info, content: (info.filename, content), extra=()):
    """Copy an archive with other entries."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(*change(info, old.read(info)))
        for name, content in extra:
            new.writestr(name, content)
    return out


def flagged(path, out):
    """Set the flag of encryption in local and central headers."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        content[at + offset] |= 1
    out.write_bytes(bytes(content))
    return out


def refused(path):
    with pytest.raises(InputError) as error:
        read_series(path)
    return str(error.value)


def test_all_series_of_all_stations_are_read(sound):
    series, others = read_series(sound)
    assert len(series) == 24
    assert {each.contrast for each in series} == set(CHANNELS)
    assert {each.name for each in series if each.breath_hold} == {f"Dixon_BH_17s_{p}" for p in ("F", "W", "in", "opp")}
    assert {len(each.slices) for each in series} == {11}
    assert others == []
    assert sorted({each.time_s % 86400 for each in series}) == [36060 + 60 * n for n in range(6)]


@pytest.mark.parametrize("manifest", ["manifest.cvs", "manifest.csv", "Manifest.CSV"])
def test_manifest_names_series_that_the_slices_do_not_name(archive, stations, manifest):
    """Its head lacks a column, and it is not called as it should be."""
    path = archive(stations[:1], manifest=manifest)
    for item in (item for slices in stations[0].values() for item in slices):
        item.SeriesDescription = ""
    nameless = archive(stations[:1], "2_20201_2_0.zip", manifest="")
    assert "its series are without a name" in refused(nameless)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(nameless, "a") as new:
        new.writestr(manifest, old.read(manifest))
    assert {each.contrast for each in read_series(nameless)[0]} == set(CHANNELS)


def test_slices_name_themselves_without_a_manifest(archive, stations):
    assert len(read_series(archive(stations[:2], manifest=""))[0]) == 8


def test_other_series_are_listed(archive, stations):
    for item in stations[1]["opp"]:
        item.SeriesDescription = "t1_vibe_pancreas"
    series, others = read_series(archive(stations[:2]))
    assert len(series) == 7
    assert others == ["t1_vibe_pancreas"]


def test_other_protocols_are_refused_by_name(archive, stations):
    for item in (item for slices in stations[0].values() for item in slices):
        item.SeriesDescription = "ShMOLLI_192i"
    text = refused(archive(stations[:1], manifest=""))
    assert "no series such as Dixon_noBH_F, its series are ShMOLLI_192i; give archives of field 20201." in text


BAD = {
    "truncated": (lambda p, o: o.write_bytes(p.read_bytes()[:-5000]), "not a whole zip file"),
    "empty": (lambda p, o: o.write_bytes(b""), "not a whole zip file"),
    "no zip": (lambda p, o: o.write_text("x" * 999), "not a whole zip file"),
    "encrypted": (flagged, ".dcm is encrypted; decrypt it, or download it again."),
    "path traversal": (
        lambda p, o: rewritten(p, o, extra=[("../../evil.dcm", b"x")]),
        "'../../evil.dcm' has an unsafe",
    ),
    "absolute path": (lambda p, o: rewritten(p, o, extra=[("/etc/evil", b"x")]), "'/etc/evil' has an unsafe name"),
    "text as slice": (lambda p, o: rewritten(p, o, extra=[("x.dcm", b"x" * 999)]), "x.dcm: is not a DICOM file"),
    "large entry": (
        lambda p, o: rewritten(p, o, extra=[("big.dcm", bytes(module.MAX_ENTRY_BYTES + 1))]),
        f"big.dcm unpacks to {module.MAX_ENTRY_BYTES + 1} bytes, no slice has more than",
    ),
    "cut slice": (
        lambda p, o: rewritten(p, o, change=lambda i, c: (i.filename, c[:300])),
        "its series are without a name",
    ),
    "no slices": (
        lambda p, o: zipfile.ZipFile(o, "w").close(),
        "it holds no DICOM files; give archives of field 20201",
    ),
    "folder": (lambda p, o: o.mkdir(), "not a whole zip file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_archive_is_refused(sound, tmp_path, name):
    make, text = BAD[name]
    out = tmp_path / "7_20201_2_0.zip"
    make(sound, out)
    message = refused(out)
    assert text in message
    assert message.startswith(str(out))
    assert list(tmp_path.iterdir()) == [out], "nothing is unpacked"


def test_damaged_bytes_are_found_by_the_checksum(sound, tmp_path):
    content = bytearray(sound.read_bytes())
    info = entry_of(sound, 40)
    content[info.header_offset + 300] ^= 255
    out = tmp_path / "7_20201_2_0.zip"
    out.write_bytes(bytes(content))
    assert "not a whole zip file (" in refused(out)


def test_bombs_are_refused_before_they_are_unpacked(sound, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 100)
    assert "holds 265 files, an archive of field 20201 at most 100" in refused(sound)
    monkeypatch.setattr(module, "MAX_ENTRIES", 1000)
    monkeypatch.setattr(module, "MAX_ARCHIVE_BYTES", sound.stat().st_size + 1)
    assert "an archive of field 20201 to" in refused(sound)
    monkeypatch.setattr(module, "MAX_ARCHIVE_BYTES", 99)
    assert f"has {sound.stat().st_size} bytes" in refused(sound)
