import errno
import hashlib
import os
import re
import stat

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.common.files import (
    atomic_path,
    input_sha256,
    remove_leftovers,
    require_writable,
    write_json,
    write_table,
    write_text,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_only_when_the_block_ends(tmp_path):
    final = tmp_path / "new" / "model.pt"
    with atomic_path(final) as temporary:
        temporary.write_bytes(b"whole")
        assert not final.exists()
        assert temporary.parent == final.parent
    assert final.read_bytes() == b"whole"
    assert names_in(final.parent) == ["model.pt"]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("img0001.nii.gz", ".nii.gz"),
        ("model.pt", ".pt"),
        ("a.b.c.nii.gz", ".nii.gz"),
        ("README", ""),
        (".hidden", ""),
    ],
)
def test_temporary_name_is_hidden_and_keeps_the_suffix(tmp_path, name, suffix):
    with atomic_path(tmp_path / name) as temporary:
        temporary.touch()
        assert re.fullmatch(r"\.tmp-[0-9a-f]{16}" + re.escape(suffix), temporary.name)


def test_nibabel_writes_compressed_through_the_temporary_name(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    with atomic_path(tmp_path / "seg.nii.gz") as temporary:
        nib.save(image, temporary)
    assert (tmp_path / "seg.nii.gz").read_bytes()[:2] == b"\x1f\x8b"


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_failure_keeps_the_old_file_and_leaves_no_temporary(tmp_path, stop):
    final = tmp_path / "data.json"
    final.write_text("old")

    def write_half():
        with atomic_path(final) as temporary:
            temporary.write_text("ha")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert final.read_text() == "old"
    assert names_in(tmp_path) == ["data.json"]


def test_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    (tmp_path / "data.json").write_text("old")
    with pytest.raises(FileNotFoundError, match=r"\.tmp-"), atomic_path(tmp_path / "data.json"):
        pass
    assert (tmp_path / "data.json").read_text() == "old"


def test_folder_under_the_final_name_is_an_error_without_leftover(tmp_path):
    (tmp_path / "data.json").mkdir()
    with (
        pytest.raises(InputError, match=r"data\.json: cannot be written \(Is a directory\)"),
        atomic_path(tmp_path / "data.json") as temporary,
    ):
        temporary.touch()
    assert names_in(tmp_path) == ["data.json"]


DISK_ERRORS = {
    errno.ENOSPC: "No space left on device); free space, then run again.",
    errno.EDQUOT: "Disk quota exceeded); free space, then run again.",
    errno.EROFS: "Read-only file system); check the folder and its disk, then run again.",
    errno.EIO: "Input/output error); check the folder and its disk, then run again.",
    errno.ESTALE: "Stale file handle); check the folder and its disk, then run again.",
    errno.EFBIG: "File too large); check the folder and its disk, then run again.",
}


@pytest.mark.parametrize("number", DISK_ERRORS)
def test_error_of_the_disk_names_the_final_file_and_leaves_nothing(tmp_path, number):
    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(InputError) as caught, atomic_path(tmp_path / "a.csv") as temporary:
        temporary.write_text("ha")
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"{tmp_path}/a.csv: cannot be written ({DISK_ERRORS[number]}"
    assert names_in(tmp_path) == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


def test_delayed_error_of_the_disk_is_noticed_before_the_file_is_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EDQUOT, "quota")))
    with pytest.raises(InputError, match="Disk quota exceeded"), atomic_path(tmp_path / "a.csv") as temporary:
        temporary.write_text("whole")
    assert names_in(tmp_path) == []


def test_error_that_hides_one_of_the_disk_is_explained_too(tmp_path):
    """`torch.save` raises a RuntimeError while it handles the error of the disk."""
    with pytest.raises(InputError, match="No space left"), atomic_path(tmp_path / "a.pt") as temporary:
        try:
            temporary.touch()
            raise OSError(errno.ENOSPC, "full")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_stop_while_an_error_of_the_disk_is_handled_stays_a_stop(tmp_path, stop):
    with pytest.raises(stop), atomic_path(tmp_path / "a.pt"):
        try:
            raise OSError(errno.ENOSPC, "full")
        finally:
            raise stop


def test_unreadable_file_inside_of_the_block_is_not_blamed_on_the_written_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), atomic_path(tmp_path / "a.csv") as temporary:
        temporary.write_bytes((tmp_path / "source").read_bytes())


def test_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"out/a\.csv: cannot be written \((Not a directory|File exists)\)"):
        write_text(tmp_path / "out" / "a.csv", "text")


def test_full_disk_is_noticed_before_the_computation(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    message = r"cannot be written \(No space left on device\); free space, or set another output folder"
    with pytest.raises(InputError, match=message):
        require_writable(tmp_path)


def test_symbolic_link_is_replaced_and_its_target_untouched(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "target").read_text() == "old"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"


def test_file_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "shared.json") as temporary:
            temporary.write_text("{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared.json").stat().st_mode) == 0o640


def test_only_leftovers_are_removed(tmp_path):
    kept = [".tmp-notes", "img0001.nii.gz", "x.tmp-0123456789abcdef.nii.gz"]
    left = [".tmp-0123456789abcdef", ".tmp-0123456789abcdef.nii.gz"]
    for name in kept + left:
        (tmp_path / name).touch()
    assert [path.name for path in remove_leftovers(tmp_path)] == left
    assert names_in(tmp_path) == sorted(kept)


def test_missing_folder_has_no_leftovers(tmp_path):
    assert remove_leftovers(tmp_path / "none") == []


def test_writable_folder_is_created_and_left_empty(tmp_path):
    assert require_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert names_in(tmp_path / "a" / "b") == []


@pytest.mark.parametrize(
    ("write", "content", "text"),
    [
        (write_text, "größer\n", "größer\n"),
        (write_json, {"b": 1, "a": [2]}, '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'),
    ],
)
def test_text_is_written_atomically_as_utf_8(tmp_path, write, content, text):
    write(tmp_path / "new" / "file", content)
    assert (tmp_path / "new" / "file").read_bytes() == text.encode()
    assert names_in(tmp_path / "new") == ["file"]


def test_table_is_written_with_its_decimals_and_empty_cells(tmp_path):
    table = pd.DataFrame({"case": ["a", "b"], "volume_ml": [1 / 3, np.nan], "n": [1, 2]})
    write_table(table, tmp_path / "volumes.csv", decimals=3)
    assert (tmp_path / "volumes.csv").read_text() == "case,volume_ml,n\na,0.333,1\nb,,2\n"


def test_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").touch()
    message = rf"{tmp_path}/file/out: cannot be written \(Not a directory\); set another output folder"
    with pytest.raises(InputError, match=message):
        require_writable(tmp_path / "file" / "out")


def test_folder_has_the_digest_of_its_files(tmp_path):
    for name, content in {"b.dcm": b"2", "a.dcm": b"1"}.items():
        (tmp_path / name).write_bytes(content)
    lines = "".join(
        f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in (("a.dcm", b"1"), ("b.dcm", b"2"))
    )
    assert input_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
