import errno
import gzip
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections import namedtuple
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.common.locks import FolderLock
from scripts.data import prepare_btcv as prepare_module
from scripts.data.datalist import load_datalist
from scripts.data.prepare_btcv import main, prepare_btcv
from tests.conftest import ROOT

TRAIN = [*range(1, 11), *range(21, 35)]
VALIDATE = list(range(35, 41))
TEST = list(range(61, 81))


def raw_names(training=(*TRAIN, *VALIDATE), test=TEST):
    pairs = [(f"Training/img/img{n:04d}.nii.gz", f"Training/label/label{n:04d}.nii.gz") for n in training]
    return [name for pair in pairs for name in pair] + [f"Testing/img/img{n:04d}.nii.gz" for n in test]


@cache
def content_of(name, size=10):
    """A small volume, different for each name."""
    voxels = np.random.default_rng(list(name.encode())).integers(0, 255, (size,) * 3, dtype=np.uint8)
    return gzip.compress(nib.Nifti1Image(voxels, np.eye(4)).to_bytes(), mtime=0)


def write_zip(path, names=None, *, extra=(), root="RawData/"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in raw_names() if names is None else names:
            archive.writestr(root + name, content_of(name))
        for name in extra:
            archive.writestr(name, b"extra")
    return path


def write_folder(path, names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content_of(name))
    return path


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_zip_is_converted_to_folders_and_the_published_split(tmp_path):
    source = write_zip(tmp_path / "RawData.zip", extra=["RawData/", "RawData/Training/readme.txt"])
    out = tmp_path / "new" / "out"
    assert prepare_btcv(source, out) == out / "dataset_0.json"
    lists = json.loads((out / "dataset_0.json").read_text())
    assert lists["training"] == [
        {"image": f"imagesTr/img{n:04d}.nii.gz", "label": f"labelsTr/label{n:04d}.nii.gz"} for n in TRAIN
    ]
    assert [item["image"] for item in lists["validation"]] == [f"imagesTr/img{n:04d}.nii.gz" for n in VALIDATE]
    assert lists["test"] == [f"imagesTs/img{n:04d}.nii.gz" for n in TEST]
    assert len(files_in(out)) == 30 + 30 + 20 + 1
    label = out / "labelsTr/label0021.nii.gz"
    assert label.read_bytes() == content_of("Training/label/label0021.nii.gz")


@pytest.mark.parametrize("root", ["", "RawData", "Abdomen/RawData"])
def test_unzipped_folder_gives_the_same_as_the_zip(tmp_path, root):
    write_folder(tmp_path / "raw" / root, [*raw_names(), "Training/img/notes.txt"])
    prepare_btcv(tmp_path / "raw", tmp_path / "from_folder")
    prepare_btcv(write_zip(tmp_path / "r.zip", root=f"{root}/" if root else ""), tmp_path / "from_zip")
    assert files_in(tmp_path / "from_folder") == files_in(tmp_path / "from_zip")
    for name in files_in(tmp_path / "from_zip"):
        assert (tmp_path / "from_folder" / name).read_bytes() == (tmp_path / "from_zip" / name).read_bytes()


def test_result_is_read_by_load_datalist(tmp_path):
    for n, name in enumerate(raw_names(training=[1, 2, 40], test=[61])):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        voxels = ((np.arange(64) + n) % 14).reshape(4, 4, 4).astype(np.uint8)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "raw" / name)
    prepare_btcv(tmp_path / "raw", tmp_path / "out")
    lists = load_datalist(tmp_path / "out", num_classes=14)
    names = {section: [item["case"] for item in items] for section, items in lists.items()}
    assert names == {"training": ["img0001", "img0002"], "validation": ["img0040"], "test": ["img0061"]}


def test_subset_keeps_its_part_of_the_split(tmp_path, caplog):
    source = write_zip(tmp_path / "r.zip", raw_names(training=[1, 37, 38], test=[]))
    lists = json.loads(prepare_btcv(source, tmp_path / "out").read_text())
    assert [len(lists[name]) for name in ("training", "validation", "test")] == [1, 2, 0]
    assert "holds 3 of 30 training cases" in caplog.text


def test_unexpected_names_are_not_extracted(tmp_path):
    odd = ["Training/img/img0011.nii.gz", "Training/img/img0061.nii.gz", "Testing/img/img0001.nii.gz"]
    odd += [
        "Training/img/._img0001.nii.gz",
        "Training/img/img0001.nii.gz.exe",
        "Testing/label/label0061.nii.gz",
    ]
    source = write_zip(tmp_path / "r.zip", extra=[f"RawData/{name}" for name in odd])
    prepare_btcv(source, tmp_path / "out")
    assert len(files_in(tmp_path / "out")) == 81


def link_entry(kind):
    info = zipfile.ZipInfo("RawData/Training/img/img0099.nii.gz")
    info.external_attr = (kind | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../evil", "entry '../evil' has an unsafe name; this is not Synapse's RawData.zip"),
        ("RawData/../../evil", "entry 'RawData/../../evil' has an unsafe name"),
        ("/etc/evil", "entry '/etc/evil' has an unsafe name"),
        ("RawData\\..\\evil", r"entry 'RawData\\..\\evil' has an unsafe name"),
        ("C:evil", "entry 'C:evil' has an unsafe name"),
        ("evil\n", r"entry 'evil\n' has an unsafe name"),
        (link_entry(stat.S_IFLNK), "entry 'RawData/Training/img/img0099.nii.gz' is a link or a device"),
        (link_entry(stat.S_IFIFO), "entry 'RawData/Training/img/img0099.nii.gz' is a link or a device"),
        (
            "x/Training/img/img0001.nii.gz",
            "x/Training/img/img0001.nii.gz and RawData/Training/img/img0001.nii.gz are the same case; keep",
        ),
    ],
)
def test_unsafe_zip_is_refused_before_anything_is_written(tmp_path, entry, message):
    source = write_zip(tmp_path / "r.zip", extra=[entry])
    with pytest.raises(InputError, match=re.escape(message)):
        prepare_btcv(source, tmp_path / "out")
    assert files_in(tmp_path) == ["r.zip"]


def patch_central_directory(path, offset, value):
    """Set two bytes in the last entry of the central directory, which zipfile trusts."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02") + offset
    data[start : start + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)


DAMAGES = {
    "img0080.nii.gz is encrypted; unzip it by hand and give the folder": lambda p: patch_central_directory(p, 8, 1),
    "img0080.nii.gz is compressed by method 9; unzip it by hand": lambda p: patch_central_directory(p, 10, 9),
    "img0080.nii.gz: not a whole NIfTI volume (BadZipFile: Bad CRC-32 for file": lambda p: patch_central_directory(
        p, 16, 4711
    ),
    "not a zip file, or corrupted (File is not a zip file); download it again": lambda p: p.write_text("<html>"),
    "not a zip file, or corrupted (zip file version 9.9)": lambda p: patch_central_directory(p, 6, 99),
    "not a zip file, or corrupted (": lambda p: p.write_bytes(p.read_bytes()[:-500]),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_unreadable_zip_is_refused_before_anything_is_written(tmp_path, message):
    source = write_zip(tmp_path / "r.zip")
    DAMAGES[message](source)
    with pytest.raises(InputError, match=re.escape(message)):
        prepare_btcv(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [n for n in raw_names() if n[-9:-7] != "05" and "label0022" not in n] + ["Training/label/label0005.nii.gz"],
            "missing imagesTr/img0005.nii.gz, labelsTr/label0022.nii.gz; add them, or remove the other file",
        ),
        (raw_names(training=TRAIN), "no validation cases; add image and label of at least one of 0035..0040"),
        (
            raw_names(training=VALIDATE),
            "no training cases; add image and label of at least one of 0001..0010,",
        ),
        ([], "holds no file like Training/img/img0001.nii.gz; give RawData.zip of the abdomen"),
        (raw_names(training=[]), "holds no file like Training/img/img0001.nii.gz"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_incomplete_source_is_refused(tmp_path, names, message, kind):
    (tmp_path / "raw").mkdir()
    folder = write_folder(tmp_path / "raw", names)
    source = write_zip(tmp_path / "r.zip", names) if kind == "zip" else folder
    with pytest.raises(InputError, match=re.escape(f"{source}: {message}")):
        prepare_btcv(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "MAX_FILE_BYTES", 1000)
    message = r"RawData/Training/img/img0001\.nii\.gz unpacks to \d+ bytes, no scan has more than 1000"
    with pytest.raises(InputError, match=message):
        prepare_btcv(write_zip(tmp_path / "r.zip"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_than_fits_on_the_disk_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9999, 9900, 99))
    with pytest.raises(InputError, match=r"out: \d+ bytes needed, 99 free; free space or choose another OUT"):
        prepare_btcv(write_zip(tmp_path / "r.zip"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(
        InputError, match=r"out: 1 problem; remove what is in the way, or choose another OUT\n.*not a folder"
    ):
        prepare_btcv(write_zip(tmp_path / "r.zip"), tmp_path / "out")


def test_everything_in_the_way_is_named(tmp_path):
    out = tmp_path / "out"
    (out / "labelsTr/label0002.nii.gz").mkdir(parents=True)
    (out / "dataset_0.json").mkdir()
    (out / "imagesTr").touch()
    (out / "imagesTs").symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match="4 problems; remove what is in the way") as caught:
        prepare_btcv(write_zip(tmp_path / "r.zip"), out)
    named = [line.removeprefix(f"{out}/").split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert sorted(named) == ["dataset_0.json", "imagesTr", "imagesTs", "labelsTr/label0002.nii.gz"]


@pytest.mark.parametrize("inside", ["", "Training", "new/out"])
def test_out_inside_of_the_source_is_refused(tmp_path, inside):
    source = write_folder(tmp_path / "raw", raw_names())
    with pytest.raises(InputError, match=r"lies in .*raw, which is not changed; choose another OUT"):
        prepare_btcv(source, source / inside)
    assert files_in(source) == sorted(raw_names())


def test_out_that_another_run_is_writing_to_is_refused(tmp_path):
    with FolderLock(tmp_path / "out"), pytest.raises(InputError, match="another run is using this folder"):
        prepare_btcv(write_zip(tmp_path / "r.zip"), tmp_path / "out")


def changed_header(**fields):
    volume = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    content = bytearray(volume.to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    return gzip.compress(content)


DAMAGED_MEMBERS = {
    "empty": (b"", "no NIfTI header"),
    "web page": (b"<html>404</html>", "Not a gzipped file (b'<h')"),
    "not NIfTI": (gzip.compress(b"x" * 1000), "no NIfTI header"),
    "cut off": (content_of("x")[:-200], "Compressed file ended before the end-of-stream marker was reached"),
    "flipped byte": (content_of("x")[:600] + b"\0" + content_of("x")[601:], ""),
    "too few voxels": (changed_header(dim=[3, 4, 4, 5, 1, 1, 1, 1]), "its header announces 432 bytes, it holds 416"),
    "negative size": (
        changed_header(dim=[3, -4, 4, 4, 1, 1, 1, 1]),
        "its header announces -4 x 4 x 4 voxels, a scan has",
    ),
    "huge": (changed_header(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "a scan has at most 1073741824"),
    "no number": (changed_header(vox_offset=np.nan), "cannot convert float NaN to integer"),
    "unknown type": (changed_header(datatype=999), "KeyError: 999"),
    "goes on": (
        gzip.compress(gzip.decompress(content_of("x")) + bytes(3 << 20)),
        "its header announces 1352 bytes, it",
    ),
}


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_files_that_are_no_whole_volumes_are_all_named_before_anything_is_written(tmp_path, kind):
    source = write_folder(tmp_path / "raw", raw_names())
    targets = [source / name for name in raw_names()[3::7]]
    for target, (content, _) in zip(targets, DAMAGED_MEMBERS.values(), strict=False):
        target.write_bytes(content)
    if kind == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "r"), "zip", source))
    with pytest.raises(
        InputError, match=f"{len(DAMAGED_MEMBERS)} problems; download or copy these files again"
    ) as caught:
        prepare_btcv(source, tmp_path / "out")
    lines = dict(
        re.fullmatch(r"(.*): not a whole NIfTI volume \((.*)\)", line).groups()
        for line in str(caught.value).splitlines()[1:]
    )
    for target, (_, problem) in zip(targets, DAMAGED_MEMBERS.values(), strict=False):
        name = str(target) if kind == "folder" else str(target.relative_to(tmp_path / "raw"))
        assert problem in lines[name]
    assert not (tmp_path / "out").exists()


def test_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "r.zip")
    with pytest.raises(InputError, match=r"r\.zip: neither a file nor a folder; give RawData\.zip"):
        prepare_btcv(tmp_path / "r.zip", tmp_path / "out")


def test_other_datalist_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dataset_0.json").write_text("{}")
    with pytest.raises(InputError, match=r"dataset_0\.json: lists other cases than .*r\.zip gives; remove it, or"):
        prepare_btcv(write_zip(tmp_path / "r.zip"), tmp_path / "out")
    assert files_in(tmp_path / "out") == ["dataset_0.json"]


def stamp(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)}


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_second_run_writes_nothing(tmp_path, kind):
    folder = write_folder(tmp_path / "raw", raw_names())
    source = write_zip(tmp_path / "r.zip") if kind == "zip" else folder
    prepare_btcv(source, tmp_path / "out")
    before = stamp(tmp_path / "out")
    prepare_btcv(source, tmp_path / "out")
    assert stamp(tmp_path / "out") == before


def test_second_run_replaces_changed_files_and_removes_leftovers(tmp_path):
    source = write_zip(tmp_path / "r.zip")
    out = tmp_path / "out"
    prepare_btcv(source, out)
    before = stamp(out)
    shorter, other = out / "imagesTr/img0001.nii.gz", out / "labelsTr/label0001.nii.gz"
    shorter.write_bytes(b"half")
    other.write_bytes(b"X" + other.read_bytes()[1:])
    (out / "imagesTs/.tmp-0123456789abcdef.nii.gz").touch()
    prepare_btcv(source, out)
    after = stamp(out)
    assert shorter.read_bytes() == content_of("Training/img/img0001.nii.gz")
    assert other.read_bytes() == content_of("Training/label/label0001.nii.gz")
    assert [name for name in before if after[name] != before[name]] == [
        "dataset_0.json", "imagesTr/img0001.nii.gz", "labelsTr/label0001.nii.gz"
    ]  # fmt: skip
    assert after.keys() == before.keys()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_stopped_run_leaves_complete_files_and_the_next_one_resumes(tmp_path, monkeypatch, stop):
    source, out, done = write_zip(tmp_path / "r.zip"), tmp_path / "out", []
    prepare_btcv(source, out)
    shutil.rmtree(out / "labelsTr")
    replace = Path.replace

    def stop_at_the_fifth(self, target):
        done.append(target)
        if len(done) == 5:
            raise stop
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop_at_the_fifth)
    with pytest.raises((KeyboardInterrupt, InputError)):
        prepare_btcv(source, out)
    assert len(files_in(out / "labelsTr")) == 4
    assert not (out / "dataset_0.json").exists()
    assert not [name for name in files_in(out) if ".tmp-" in name]
    prepare_btcv(source, out)
    assert len(done) == 5 + 26 + 1
    assert len(files_in(out)) == 81


def test_full_disk_leaves_no_partial_file(tmp_path):
    source = write_folder(tmp_path / "raw", raw_names())
    (source / "Training/label/label0001.nii.gz").write_bytes(content_of("large", size=20))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); "
    limit += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code = f"{limit}from scripts.prepare_btcv import main; main([{str(source)!r}, {str(tmp_path / 'out')!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    error = (
        f"{tmp_path}/out/labelsTr/label0001.nii.gz: cannot be written (File too large); check the folder and its disk"
    )
    assert done.stderr == f"prepare_btcv: error: {error}, then run again.\n"
    assert {name.split("/")[0] for name in files_in(tmp_path / "out")} == {"imagesTr", "imagesTs"}


def test_command_line_ends_with_0(tmp_path):
    assert main([str(write_zip(tmp_path / "r.zip")), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.zip", "none.zip: no such file; give RawData.zip or its unzipped folder"),
        ("text.zip", "text.zip: not a zip file, or corrupted (File is not a zip file); download it again"),
        ("empty", "empty: holds no file like Training/img/img0001.nii.gz; give RawData.zip of the abdomen"),
    ],
)
def test_command_line_ends_with_2_and_one_line_for_bad_input(tmp_path, capsys, source, message):
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as exit_info:
        main([str(tmp_path / source), str(tmp_path / "out")])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"prepare_btcv: error: {tmp_path}/{message}\n"


def test_interrupted_command_line_ends_with_130_and_one_line(tmp_path, capsys, monkeypatch):
    def interrupt(source, out):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "prepare_btcv", interrupt)
    with pytest.raises(SystemExit) as exit_info:
        main(["x", "y"])
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "prepare_btcv: stopped; run again to resume\n"
