"""Bad input for the commands, full disks and stopped runs: exit code 2 and one message, nothing half-written."""

import gzip
import resource
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR

from tests.conftest import ROOT

BTCV, BRATS = "scripts.prepare_btcv", "scripts.prepare_brats"
CONVERT, PACK = "scripts.convert_weights", "tools.pack"


def volume(seed):
    voxels = np.random.default_rng(seed).integers(0, 255, (6, 7, 8), dtype=np.uint8)
    return gzip.compress(nib.Nifti1Image(voxels, np.eye(4)).to_bytes(), mtime=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A download of BTCV, its zip, a download of BraTS and published weights."""
    folder = tmp_path_factory.mktemp("source")
    with zipfile.ZipFile(folder / "RawData.zip", "w") as archive:
        for n in (1, 2, 21, 35, 36):
            archive.writestr(f"RawData/Training/img/img{n:04d}.nii.gz", volume(n))
            archive.writestr(f"RawData/Training/label/label{n:04d}.nii.gz", volume(100 + n))
    with zipfile.ZipFile(folder / "RawData.zip") as archive:
        archive.extractall(folder)
    for n in range(6):
        case = folder / "brats" / f"BraTS-GLI-{n:05d}-000"
        case.mkdir(parents=True)
        for kind in ("t1n", "t1c", "t2w", "t2f", "seg"):
            (case / f"{case.name}-{kind}.nii.gz").write_bytes(volume(n))
    network = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=2)
    torch.save({"state_dict": network.state_dict()}, folder / "published.pt")
    return folder


def arguments(module, source, out):
    return {
        BTCV: [source / "RawData.zip", out],
        BRATS: [source / "brats", "--out", f"{out}/dataset_0.json"],
        CONVERT: [source / "published.pt", f"{out}/model.pt"],
        PACK: ["solf_filter", "swin_bob_btcv", "--out", out],
    }[module]


def command(module, *words, **options):
    line = [sys.executable, "-W", "ignore", "-m", module, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, **options)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (BTCV, ["OUT/published.pt", "OUT/new"], "published.pt: not a zip file, or corrupted"),
        (BTCV, ["published.pt", "OUT/new"], "published.pt: holds no file like Training/img/img0001.nii.gz"),
        (BTCV, ["RawData.zip", "OUT/published.pt/x"], "OUT/published.pt/x: cannot be written"),
        (BTCV, ["RawData", "RawData/out"], "RawData/out: lies in "),
        (BRATS, ["RawData.zip"], "RawData.zip: not a folder"),
        (BRATS, ["brats", "--seed", "-1"], "seed is -1: give 0 or more"),
        (BRATS, ["brats", "--folds", "7"], "folds is 7 for 6 patients"),
        (BRATS, ["RawData"], "RawData: no cases found"),
        (CONVERT, ["RawData.zip", "OUT/model.pt"], "RawData.zip: not a PyTorch checkpoint"),
        (CONVERT, ["published.pt", "published.pt"], "published.pt: is the source itself"),
        (CONVERT, ["brats", "OUT/model.pt"], "brats: not a file: give the path of the weights"),
        (PACK, ["../tests", "--out", "OUT"], "error: ../tests: no such bundle"),
        (PACK, ["solf_filter", "--weights", "--out", "OUT"], "solf_filter: 1 problem; nothing was packed"),
    ],
)
def test_command_ends_with_2_and_one_message_and_leaves_nothing(source, tmp_path, module, words, message):
    (tmp_path / "published.pt").touch()  # a file where a folder should be
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    paths = {name: str(source / name) for name in ("published.pt", "RawData.zip", "RawData", "brats", "RawData/out")}
    words = [paths.get(word, word.replace("OUT", str(tmp_path))) for word in words]
    done = command(module, *words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert message.replace("OUT", str(tmp_path)) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["published.pt"]
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("module", "limit"), [(BTCV, 500), (BTCV, 0), (BRATS, 1000), (CONVERT, 100_000), (PACK, 100_000)]
)
def test_full_disk_is_named_and_nothing_half_written_stays(source, tmp_path, module, limit):
    """A limit of the size of files stands for the disk."""
    words = arguments(module, source, tmp_path / "out")
    done = command(module, *words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert command(module, *words).returncode == 0


@pytest.mark.hostile
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
@pytest.mark.parametrize("module", [BTCV, BRATS, CONVERT, PACK])
def test_stopped_run_gives_the_same_bytes_when_it_is_started_again(source, tmp_path, module, number):
    words = arguments(module, source, "OUT")
    done = command("tests.hostile.stopped_runs", module, number, 20, tmp_path, *words)
    assert done.returncode == 0, done.stderr[-2000:]
