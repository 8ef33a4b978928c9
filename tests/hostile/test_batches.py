"""Runs that are killed, disks that are full, folders in use or changed: no case is lost and no file is half-written."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from scripts.common.locks import FolderLock
from scripts.inference.evaluator import CaseDataset
from tests.conftest import ROOT, TINY, bundle_workflow, command_line, run_bundle, training_settings

BUNDLE = "swin_bob_btcv"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class KillingDataset(CaseDataset):
    """Kills the process that loads a case whose name begins with "killed"."""

    def __getitem__(self, index):
        if self.data[index]["case"].startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class KillingTrainingSet(Dataset):
    """Kills the process that loads its second case."""

    def __init__(self, data, transform, **_):
        super().__init__(data, transform)

    def __getitem__(self, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Untrained weights."""
    workflow = bundle_workflow(BUNDLE, ["inference.json"], kind="infer", **TINY)
    workflow.parser.update({"input": str(ROOT), "output_dir": str(tmp_path_factory.mktemp("unused"))})
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(workflow.parser.get_parsed_content("network_def").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Three small images of noise."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    for name in ("a", "b", "c"):
        voxels = rng.normal(0, 200, (48, 40, 32)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([6.0, 6.0, 6.0, 1.0])), folder / f"{name}.nii.gz")
    return folder


def inference_settings(weights_file, inputs, out, **more):
    return {**TINY, "input": str(inputs), "output_dir": str(out), "ckpt_path": str(weights_file), **more}


def start(*arguments, prefix=(), **settings):
    """Start the program."""
    command = [*prefix, sys.executable, "-m", "monai.bundle", "run", *arguments, *command_line(settings)]
    folder = ROOT / "bundles" / BUNDLE
    at_terminal = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background ignore Ctrl-C
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, preexec_fn=at_terminal
    )


def finish(process):
    """Return the exit code and what the person at the terminal reads."""
    stderr = process.communicate(timeout=280)[1]
    return process.returncode, stderr


def infer(*arguments, prefix=(), **settings):
    return finish(start("--config_file", "configs/inference.json", *arguments, prefix=prefix, **settings))


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def table_of(folder, name="volumes.csv"):
    return pd.read_csv(folder / name, dtype={"case": str}).set_index("case")


PICTURES = [f"{case}{end}" for case in "abc" for end in ("_seg.nii.gz", "_preview.png")]
RESULTS = sorted(["organs.csv", "run.json", "volumes.csv", *PICTURES])


# One run over a folder in which much goes wrong


def test_each_case_that_fails_is_named_and_the_others_are_finished(weights_file, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a_good", "killed", "map_is_folder", "picture_is_folder", "z_good"):
        shutil.copy(inputs / "a.nii.gz", folder / f"{name}.nii.gz")
    for name in ("map_is_folder_seg.nii.gz", "picture_is_folder_preview.png"):
        (out / name).mkdir(parents=True)
    (out / ".tmp-0123456789abcdef.nii.gz").touch()
    (out / "failed.csv").write_text("case,reason\na_good,old\nkilled,old\nother,old\n")
    more = {"num_workers": 1, "dataset#_target_": "tests.hostile.test_batches.KillingDataset"}
    with pytest.raises(SystemExit, match="3 of 5 cases failed"):
        run_bundle(BUNDLE, ["inference.json"], kind="infer", **inference_settings(weights_file, folder, out, **more))
    reasons = table_of(out, "failed.csv")["reason"].to_dict()
    folder_there = "cannot be written (Is a directory); check the folder and its disk, then run again."
    expected = {
        "killed": "the process that loads it was killed (SIGKILL, out of memory?); free memory",
        "map_is_folder": f"{out}/map_is_folder_seg.nii.gz: {folder_there}",
        "picture_is_folder": f"{out}/picture_is_folder_preview.png: {folder_there}",
        "other": "old",
    }
    assert reasons.keys() == expected.keys()
    assert all(text in reasons[case] for case, text in expected.items())
    assert [path for path in names_in(out) if path.startswith(".")] == []
    assert {"a_good_seg.nii.gz", "z_good_preview.png"} <= set(names_in(out))
    assert list(table_of(out).index) == ["a_good", "picture_is_folder", "z_good"]


# Folders that a run refuses before its first case


REFUSED = {
    "another network's table": (
        lambda out: (out / "volumes.csv").write_text("case,edema,necrotic core\na,1,2\n"),
        "volumes.csv: its columns are not those of this run (edema, necrotic core, spleen, ",
    ),
    "damaged table": (
        lambda out: (out / "volumes.csv").write_bytes(os.urandom(200)),
        "volumes.csv: ",
    ),
    "empty table": (
        lambda out: (out / "volumes.csv").touch(),
        "volumes.csv: its columns are not those of this run (case, spleen",
    ),
    "folder in place of the table": (
        lambda out: (out / "volumes.csv").mkdir(),
        "volumes.csv: cannot be read (Is a directory); move the file away, or set another output_dir.",
    ),
    "another list of failures": (
        lambda out: (out / "failed.csv").write_text("notes\n"),
        "failed.csv: its columns are not those of this run (notes, case, reason); move the file away",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_folder_with_a_table_that_cannot_be_added_to_is_refused_and_left_alone(weights_file, inputs, tmp_path, kind):
    prepare, message = REFUSED[kind]
    prepare(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    settings = inference_settings(weights_file, inputs, tmp_path)
    with pytest.raises(RuntimeError) as error:
        run_bundle(BUNDLE, ["inference.json"], kind="infer", **settings)
    causes = [error.value]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    assert any(message in str(cause) for cause in causes)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_second_program_in_the_same_folder_is_refused_in_one_message(weights_file, inputs, tmp_path):
    with FolderLock(tmp_path):
        code, stderr = infer(**inference_settings(weights_file, inputs, tmp_path))
    assert code == 1
    last = stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}: another run is using this folder (host ")
    assert f"process {os.getpid()}, since " in last
    assert last.endswith("; wait until it ends, or set another output_dir.")
    assert "Traceback" not in stderr
    assert names_in(tmp_path) == []


# Two runs one after the other


@pytest.mark.hostile
def test_second_run_keeps_the_rows_of_the_first_and_says_what_it_replaces(weights_file, inputs, tmp_path):
    first = infer(**inference_settings(weights_file, inputs, tmp_path / "out"))
    assert first[0] == 0, first[1]
    assert "replacing" not in first[1]
    (tmp_path / "more").mkdir()
    for name in ("c", "d"):
        shutil.copy(inputs / "a.nii.gz", tmp_path / "more" / f"{name}.nii.gz")
    rows = (tmp_path / "out" / "volumes.csv").read_text().splitlines()
    code, stderr = infer(**inference_settings(weights_file, tmp_path / "more", tmp_path / "out"))
    assert code == 0, stderr
    assert f"{tmp_path}/out: replacing the results of 1 cases: c\n" in stderr
    both = (tmp_path / "out" / "volumes.csv").read_text().splitlines()
    assert both[:3] == rows[:3]
    assert [row.split(",")[0] for row in both] == ["case", "a", "b", "c", "d"]


# Real programs that are killed or stopped


@pytest.mark.hostile
def test_killed_loading_process_of_the_program(weights_file, inputs, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(inputs, folder)
    shutil.copy(inputs / "a.nii.gz", folder / "killed.nii.gz")
    more = {"num_workers": 1, "dataset#_target_": "tests.hostile.test_batches.KillingDataset"}
    code, stderr = infer(**inference_settings(weights_file, folder, tmp_path / "out", **more))
    assert code == 1
    assert "1 of 4 cases failed:" in stderr
    assert "killed: the process that loads it was killed (SIGKILL, out of memory?)" in stderr.strip().splitlines()[-1]
    assert "Traceback" not in stderr
    assert names_in(tmp_path / "out") == sorted([*RESULTS, "failed.csv"])


@pytest.mark.hostile
@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 1, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_stopped_program_ends_its_bars_frees_the_folder_and_keeps_what_was_finished(
    weights_file, inputs, tmp_path, number, code, said
):
    settings = inference_settings(weights_file, inputs, tmp_path)
    process = start("--config_file", "configs/inference.json", **settings)
    wait_for(tmp_path / "a_preview.png", process)
    process.send_signal(number)
    found, stderr = finish(process)
    assert said in stderr
    assert found == code or (number == signal.SIGINT and found in (130, -signal.SIGINT))
    assert "Traceback" not in stderr
    bar = stderr.rindex("cases:")
    assert "\n" in stderr[bar:].split("stopped by")[0], "the message stands in the line of the bar"
    assert [name for name in names_in(tmp_path) if name.startswith(".")] == []
    assert "a" in table_of(tmp_path).index


def wait_for(path, process):
    """Wait until a file exists or the program ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def segmented(weights_file, inputs, tmp_path_factory):
    """Results of a run that was left alone, and the seconds from its lock to its end."""
    out = tmp_path_factory.mktemp("alone") / "out"
    process = start("--config_file", "configs/inference.json", **inference_settings(weights_file, inputs, out))
    wait_for(out / ".lock", process)
    began = time.monotonic()
    code, stderr = finish(process)
    assert code == 0, stderr
    return out, time.monotonic() - began


@pytest.mark.hostile
@pytest.mark.parametrize("seed", range(6))
def test_killed_inference_is_run_again_to_the_results_of_one_that_was_left_alone(
    weights_file, inputs, segmented, tmp_path, seed
):
    alone, seconds = segmented
    settings = inference_settings(weights_file, inputs, tmp_path / "out")
    process = start("--config_file", "configs/inference.json", **settings)
    wait_for(tmp_path / "out" / ".lock", process)
    time.sleep(random.Random(seed).random() * seconds)
    process.kill()
    finish(process)
    for path in (tmp_path / "out").glob("[a-c]*"):
        assert path.read_bytes() == (alone / path.name).read_bytes(), "half-written"
    code, stderr = infer(**settings)
    assert code == 0, stderr
    assert names_in(tmp_path / "out") == names_in(alone) == RESULTS
    for name in RESULTS:
        assert (tmp_path / "out" / name).read_bytes() == (alone / name).read_bytes(), name


# Disks


@pytest.fixture
def on_small_disk(tmp_path):
    """A command prefix that mounts a disk of some KiB at `tmp_path / "disk"`, seen by that program alone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount here")

    def prefix(kib, then="true"):
        """Keep the results in `tmp_path / "kept"`, as the disk ends with the program."""
        script = f'mount -t tmpfs -o size={kib}k tmpfs {disk} && ({then}) & sleep 0.5; "$@"; code=$?; '
        script += f"cp -r {disk}/out {tmp_path}/kept 2>/dev/null; exit $code"
        return ["unshare", "-rm", "bash", "-c", script, "bash"]

    return prefix


def sizes_kib(folder, *names):
    """Return the blocks of files on a disk with blocks of 4 KiB."""
    return sum(-(-(folder / name).stat().st_size // 4096) * 4 for name in names)


@pytest.mark.hostile
@pytest.mark.parametrize("part", ["label map", "preview", "table", "list of failures"])
def test_disk_that_is_full_at_the_second_case(weights_file, inputs, segmented, tmp_path, on_small_disk, part):
    alone, _ = segmented
    first = sizes_kib(alone, "a_seg.nii.gz", "a_preview.png") + 8  # the lock and the table
    room = {
        "label map": 24,
        "preview": sizes_kib(alone, "b_seg.nii.gz") + 24,
        "table": sizes_kib(alone, "b_seg.nii.gz") + 2,
        "list of failures": 8,
    }[part]
    disk = tmp_path / "disk" / "out"
    code, stderr = infer(prefix=on_small_disk(first + room), **inference_settings(weights_file, inputs, disk))
    kept = tmp_path / "kept"
    assert code == 1, stderr
    assert "2 of 3 cases failed:" in stderr
    lines = stderr.strip().splitlines()[-2:]
    for case, line in zip("bc", lines, strict=True):
        assert f"  {case}: " in line
        assert f"{disk}/" in line
        assert "cannot be written (No space left on device); free space, then run again." in line
    assert "Traceback" not in stderr
    for path in kept.glob("[a-c]*"):
        assert path.read_bytes() == (alone / path.name).read_bytes(), f"{path.name} is cut off"
    assert {"a_seg.nii.gz", "a_preview.png", "volumes.csv"} <= set(names_in(kept))
    assert "a" in table_of(kept).index
    assert not any(name.startswith(".") for name in names_in(kept))


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("event", "why"),
    [
        ("rm -r {disk}/out", ""),
        ("umount -l {disk}", ""),
        ("mount -t tmpfs -o ro tmpfs {disk}", "failed.csv: cannot be written (Read-only file system)"),
    ],
    ids=["removed", "unmounted", "covered by another that is read-only"],
)
def test_folder_that_is_gone_after_the_first_case(weights_file, inputs, tmp_path, on_small_disk, event, why):
    disk = tmp_path / "disk"
    wait = f"while [ ! -f {disk}/out/a_preview.png ]; do sleep 0.02; done; " + event.format(disk=disk)
    settings = inference_settings(weights_file, inputs, disk / "out")
    code, stderr = infer(prefix=on_small_disk(20000, then=wait), **settings)
    assert code == 1, stderr
    assert "of 3 cases failed:" in stderr
    assert f"{disk}/out: was removed or replaced during the run; run again." in stderr.strip().splitlines()[-1]
    assert why in stderr
    assert "Traceback" not in stderr


# Trainings


@pytest.fixture(scope="module")
def trained(torso_data, tmp_path_factory):
    """Checkpoints of a training that was left alone, and the seconds from its lock to its end."""
    folder = tmp_path_factory.mktemp("trained")
    process = train(torso_data, folder)
    wait_for(folder / "models" / ".lock", process)
    began = time.monotonic()
    code, stderr = finish(process)
    assert code == 0, stderr
    return folder / "models", time.monotonic() - began


def train(data, folder, **more):
    settings = training_settings(data, folder, max_epochs=3, **more)
    return start("training", "--config_file", "configs/train.json", **settings)


@pytest.mark.hostile
@pytest.mark.parametrize("seed", range(20))
def test_killed_training_is_resumed_to_the_checkpoints_of_one_that_was_left_alone(torso_data, trained, tmp_path, seed):
    """Byte for byte, on one thread."""
    alone, seconds = trained
    models = tmp_path / "models"
    process = train(torso_data, tmp_path)
    wait_for(models / ".lock", process)
    time.sleep(random.Random(seed).random() * seconds)
    process.kill()
    finish(process)
    code, stderr = finish(train(torso_data, tmp_path, resume=str((models / "training_state.ckpt").exists()).lower()))
    assert code == 0, stderr
    assert names_in(models) == names_in(alone) == ["model.pt", "training_state.ckpt"]
    for name in ("training_state.ckpt", "model.pt"):
        assert (models / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.hostile
def test_second_training_in_the_same_folder_is_refused_and_the_first_unharmed(torso_data, trained, tmp_path):
    alone, _ = trained
    first = train(torso_data, tmp_path)
    wait_for(tmp_path / "models" / "training_state.ckpt", first)
    first.send_signal(signal.SIGSTOP)  # so that it cannot end before the second starts
    code, stderr = finish(train(torso_data, tmp_path))
    first.send_signal(signal.SIGCONT)
    assert code == 1
    last = stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/models: another run is using this folder (host ")
    assert last.endswith("; wait until it ends, or set another ckpt_dir.")
    assert finish(first)[0] == 0
    assert (tmp_path / "models" / "training_state.ckpt").read_bytes() == (alone / "training_state.ckpt").read_bytes()


@pytest.mark.hostile
def test_training_on_a_full_disk_ends_in_one_message_and_keeps_the_whole_files(
    torso_data, trained, tmp_path, on_small_disk
):
    alone, _ = trained
    room = sizes_kib(alone, "model.pt") + sizes_kib(alone, "training_state.ckpt") // 2
    settings = training_settings(torso_data, tmp_path, max_epochs=3, ckpt_dir=str(tmp_path / "disk" / "out"))
    process = start("training", "--config_file", "configs/train.json", prefix=on_small_disk(room), **settings)
    code, stderr = finish(process)
    assert code == 1
    last = stderr.strip().splitlines()[-1]
    full = "cannot be written (No space left on device); free space, then run again."
    assert last == f"error: {tmp_path}/disk/out/training_state.ckpt: {full}"
    assert "Traceback" not in stderr
    assert names_in(tmp_path / "kept") == ["model.pt"]


@pytest.mark.hostile
def test_training_whose_loading_process_is_killed_ends_in_one_message(torso_data, tmp_path):
    more = {"num_workers": 1, "train#dataset#_target_": "tests.hostile.test_batches.KillingTrainingSet"}
    code, stderr = finish(train(torso_data, tmp_path, **more))
    assert code == 1
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "DataLoader worker" in last
    assert "lower num_workers" in last
    assert "Traceback" not in stderr
    assert not (tmp_path / "models").exists()
