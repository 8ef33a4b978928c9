"""Bad images among good ones: each fails by name with its reason, and the good ones are done."""

import csv
import gzip
import os
import resource
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import PAPER, ROOT, TINY, command_line, run_bundle
from tests.scripts.io.dicom_files import BAD_SERIES, write_series
from tests.scripts.io.nifti_headers import BAD_HEADERS, GUESSED_HEADERS, editing
from tests.scripts.io.volume_files import BAD_FILES, BAD_IMAGES, write_array, write_image, write_volume

POINTWISE = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 14, "kernel_size": 1}
"""A network that takes no time: what is tried here happens before and after it."""
SMALL = {"network_def": POINTWISE, "spacing_mm": TINY["spacing_mm"], "patch_size": [64, 64, 64], "num_workers": 0}
BAD_ENTRIES = {
    "folder": (lambda path: path.mkdir(), "folder.nii.gz: "),
    "pipe": (os.mkfifo, "is a folder, a pipe or a device; give a NIfTI file."),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a folder, a pipe or a device; give a NIfTI file."),
    "link": (lambda path: path.symlink_to("none.nii.gz"), "no such file where this link points; correct the path."),
    "loop": (lambda path: path.symlink_to(path.name), "cannot be read whole (Too many levels of symbolic links)"),
    "dicom": (lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(99)), "cannot be read whole (Not a gzipped"),
    "text": (lambda path: path.write_text("not an image"), "cannot be read whole (Not a gzipped file"),
    "twice packed": (lambda path: path.write_bytes(gzip.compress(gzip.compress(bytes(999)))), "not a NIfTI file"),
    "float64": (lambda path: write_array(path, np.geomspace(1, 1e300, 210).reshape(5, 6, 7)), "which float32 cannot"),
}


def write_bad_volumes(folder, tables):
    """Write a volume per row of tables; return case to the text that its reason must contain."""
    expected = {}
    for number, table in enumerate(tables):
        for n, (key, row) in enumerate(table.items()):
            change, message = row if isinstance(row, tuple) else (row, key)
            if key == "no such file":
                continue
            case = f"{number}_{n:02d}"
            change(write_volume(folder / f"{case}.nii.gz", value=1, dtype=np.int16))
            expected[case] = message
    for name, (make, message) in BAD_ENTRIES.items():
        make(folder / f"{name}.nii.gz")
        expected[name] = message
    return expected


def failures(folder):
    with (folder / "failed.csv").open(newline="", encoding="utf-8") as file:
        return {row["case"]: row["reason"] for row in csv.DictReader(file)}


def assert_failed(folder, expected):
    found = failures(folder)
    assert found.keys() == expected.keys()
    assert {case: found[case] for case, message in expected.items() if message not in found[case]} == {}
    assert [reason for reason in found.values() if "\n" in reason or "Error" in reason] == []
    assert [path for path in folder.iterdir() if path.name.startswith(".tmp")] == []


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr("scripts.preview.png.DPI", 20)


@pytest.fixture(scope="module")
def ckpt_path(tmp_path_factory):
    """Random weights."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.manual_seed(0)
    torch.save(torch.nn.Conv3d(1, 14, 1).state_dict(), path)
    return str(path)


def write_good_images(folder, torso):
    """Write a CT, a line of voxels, one without orientation and a DICOM series; return their names."""
    shutil.copy(torso, folder / "good.nii.gz")
    write_image(folder / "line.nii.gz", shape=(1, 1, 30))
    GUESSED_HEADERS["no orientation"][0](write_image(folder / "unknown.nii"))
    write_series(folder / "series")
    return ["good", "line", "series", "unknown"]


def test_bad_images_of_a_folder_fail_and_the_others_are_segmented(torso_data, ckpt_path, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    expected = write_bad_volumes(source, [BAD_FILES, BAD_HEADERS, BAD_IMAGES])
    for n, (change, message) in enumerate(BAD_SERIES.values()):
        change(write_series(source / f"series{n:02d}" / "bad"))
        (source / f"series{n:02d}" / "bad").rename(source / f"bad{n:02d}")
        (source / f"series{n:02d}").rmdir()
        expected[f"bad{n:02d}"] = message.removeprefix("bad: ")
    del expected[f"bad{[*BAD_SERIES].index('no slices'):02d}"]  # an empty folder is not taken for a series
    good = write_good_images(source, torso_data / "imagesTs" / "torso_003.nii.gz")
    settings = {**SMALL, "ckpt_path": ckpt_path, "input": str(source), "output_dir": str(out)}
    with pytest.raises(SystemExit) as end:
        run_bundle("swin_bob_btcv", ["inference.json"], kind="infer", **settings)
    total = len(expected) + len(good)
    assert str(end.value).startswith(f"{len(expected)} of {total} cases failed:\n  0_01: {source}/0_01.nii.gz: ")
    assert_failed(out, expected)
    for case in good:
        assert nib.load(out / f"{case}_seg.nii.gz").get_data_dtype() == np.uint8
        assert (out / f"{case}_preview.png").is_file()


def test_bad_label_maps_of_a_cohort_fail_and_the_others_are_measured_and_cleaned(label_data, tmp_path):
    shutil.copytree(label_data, tmp_path / "in")
    bad = write_bad_volumes(tmp_path / "in", [BAD_FILES, BAD_HEADERS])
    expected = {case: message.removesuffix(" 0x") for case, message in bad.items()}  # zlib-ng names decimal numbers
    expected["float64"] = "holds values from 1 to 1e+300, labels are 0 to 65535"
    write_series(tmp_path / "in" / "series")  # left out, as it holds no segmentation
    ckpt_path = str(tmp_path / "model.pt")
    fit = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "fit"), "ckpt_dir": str(tmp_path)}
    clean = {"input": str(tmp_path / "in"), "output_dir": str(tmp_path / "out"), "ckpt_path": ckpt_path}
    options = {"workers": 0, "qc": False}
    for config, settings in (("train.json", {**fit, **PAPER, "epsilon_percent": 20}), ("inference.json", clean)):
        with pytest.raises(SystemExit, match=f"{len(expected)} of {len(expected) + 6} cases failed"):
            run_bundle("solf_filter", [config], **settings, **options)
        assert_failed(tmp_path / settings["output_dir"], expected)
    assert len(list((tmp_path / "out").glob("*_cleaned.nii.gz"))) == 6


def run_program(bundle, *arguments, limit_bytes=None, **settings):
    """Run `python -m monai.bundle run`, with a limit of its memory."""
    limit = (limit_bytes or resource.RLIM_INFINITY,) * 2
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *arguments, *command_line(settings)],
        cwd=ROOT / "bundles" / bundle,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )


@pytest.mark.hostile
def test_volumes_that_do_not_fit_into_memory_do_not_kill_the_program(torso_data, ckpt_path, tmp_path):
    """A header that announced 8 GB did, by SIGKILL, and with it all other cases."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(torso_data / "imagesTs" / "torso_003.nii.gz", source / "good.nii.gz")
    half = {f"srow_{axis}_{n}": 0.5 for n, axis in enumerate("xyz")}
    sizes = {"header": (2000, 2000, 1000), "bomb": (1400, 1400, 1000), "more": (2000, 2000, 2000)}
    for name, (x, y, z) in sizes.items():
        editing(dim_1=x, dim_2=y, dim_3=z, **half)(write_image(source / f"{name}.nii.gz"))
    zeros = gzip.compress(bytes(1 << 26), compresslevel=1)
    for name in ("bomb", "more"):
        with (source / f"{name}.nii.gz").open("ab") as file:
            file.write(zeros * 256)
    settings = {**SMALL, "ckpt_path": ckpt_path, "input": str(source), "output_dir": str(out)}
    arguments = ["--config_file", "configs/inference.json"]
    done = run_program("swin_bob_btcv", *arguments, **settings, limit_bytes=12 * 10**9)
    assert done.returncode == 1
    assert_failed(
        out,
        {
            "header": "its header announces 8000000352 bytes, the file holds at most",
            "bomb": "1400 x 1400 x 1000 voxels need 11.76 GB of memory",
            "more": "has 2000 x 2000 x 2000 voxels, more than 2.1 billion",
        },
    )
    assert (out / "good_seg.nii.gz").is_file()
    assert "Traceback" not in done.stderr
    assert "3 of 4 cases failed:" in done.stderr


@pytest.mark.hostile
@pytest.mark.parametrize("output_dir", ["in", "in/../in", "link"])
def test_results_among_the_inputs_are_refused_by_the_program(label_data, tmp_path, output_dir):
    shutil.copytree(label_data, tmp_path / "in")
    (tmp_path / "link").symlink_to("in")
    before = sorted(path.name for path in (tmp_path / "in").iterdir())
    settings = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / output_dir)}
    done = run_program("solf_filter", "training", "--config_file", "configs/train.json", **settings)
    assert done.returncode == 1
    assert f"error: output_dir is {tmp_path / output_dir}, where inputs lie" in done.stderr
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == before
