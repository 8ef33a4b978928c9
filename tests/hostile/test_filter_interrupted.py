"""Fits and cleanings that are killed, run out of disk, or meet another run: finished later to the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import PAPER, ROOT, command_line, run_bundle
from tools.label_cohort import make_cohort

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(3000)]
CONFIGS = {"fit": "train.json", "clean": "inference.json"}
KILLS = 20
NO_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
int flock(int file, int operation) { errno = ENOLCK; return -1; }
#define CONTROL(name) int name(int file, int command, ...) { \\
    va_list list; va_start(list, command); void *argument = va_arg(list, void *); va_end(list); \\
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) { errno = ENOLCK; return -1; } \\
    return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, #name))(file, command, argument); }
CONTROL(fcntl)
CONTROL(fcntl64)
"""


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), subjects=25, error_rate=0.1, seed=5).labels[0].parent


@pytest.fixture(scope="module")
def model(labels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    folders = {"dataset_dir": str(labels), "ckpt_dir": str(folder), "output_dir": str(folder / "fit")}
    run_bundle("solf_filter", ["train.json"], **folders, **PAPER, workers=0, epsilon_percent=4, qc=False)
    return folder / "model.pt"


def command(kind, labels, model, folder, **more):
    """Return the words of a command that writes all its results below a folder."""
    given = {"output_dir": str(folder / "out"), "qc": True, "workers": 0, **more}
    if kind == "fit":
        given |= {"dataset_dir": str(labels), "ckpt_dir": str(folder / "models"), **PAPER, "epsilon_percent": 4}
    else:
        given |= {"input": str(labels), "ckpt_path": str(model)}
    config = str(ROOT / "bundles" / "solf_filter" / "configs" / CONFIGS[kind])
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, *command_line(given)]


def start(words, **options):
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


def read_until(process, text):
    """Read what a process prints until a text appears or it ends."""
    printed = ""
    while text not in printed and (character := process.stderr.read(1)):
        printed += character
    return printed


def results(folder):
    """Return the bytes of all files but the journal, whose pages depend on the order of its rows."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "journal.sqlite"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(labels, model, tmp_path_factory):
    """Kind of run to its results, and the seconds from its first case to its end."""
    found = {}
    for kind in CONFIGS:
        folder = tmp_path_factory.mktemp(kind)
        process = start(command(kind, labels, model, folder))
        read_until(process, "cases:")
        began = time.monotonic()
        assert (process.communicate()[1], process.returncode)[1] == 0
        found[kind] = results(folder), time.monotonic() - began
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_run_that_is_killed_at_any_moment_is_finished_to_the_same_bytes(kind, labels, model, undisturbed, tmp_path):
    """Killed at 20 moments from its first case to its end, four times in each of five folders."""
    expected, seconds = undisturbed[kind]
    rng, killed = random.Random(0), 0
    while killed < KILLS:
        folder = tmp_path / f"{killed:02d}"
        words = command(kind, labels, model, folder, workers=rng.choice([0, 2]))
        for _ in range(4):
            process = start(words)
            read_until(process, "cases:")
            time.sleep(rng.uniform(0, seconds))
            process.kill()
            process.communicate()
            killed += 1
        process = start(words)
        printed = process.communicate()[1]
        assert process.returncode == 0, printed
        assert results(folder) == expected


@pytest.mark.parametrize("kind", CONFIGS)
def test_second_run_in_the_same_folders_is_refused_and_the_first_one_is_not_disturbed(
    kind, labels, model, undisturbed, tmp_path
):
    first = start(command(kind, labels, model, tmp_path))
    read_until(first, "cases:")
    first.send_signal(signal.SIGSTOP)  # in the middle of its work
    folders = ["out", "models"] if kind == "fit" else ["out"]
    for folder in folders:
        other = {"output_dir": str(tmp_path / "other")} if folder == "models" else {}
        second = start(command(kind, labels, model, tmp_path, **other))
        printed = second.communicate()[1]
        assert second.returncode == 1
        assert "Traceback" not in printed
        assert f"{tmp_path / folder}: another run is using this folder (host " in printed
        assert f"process {first.pid}" in printed
    first.send_signal(signal.SIGCONT)
    assert (first.communicate(), first.returncode)[1] == 0
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    assert results(tmp_path) == undisturbed[kind][0]


@pytest.mark.parametrize("kind", CONFIGS)
def test_file_system_without_locks_is_named_once_and_the_run_goes_on(kind, labels, model, undisturbed, tmp_path):
    if not shutil.which("cc"):
        pytest.skip("no C compiler is installed")
    (tmp_path / "no_locks.c").write_text(NO_LOCKS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "no_locks.so", "no_locks.c", "-ldl"], cwd=tmp_path, check=True)
    words = command(kind, labels, model, tmp_path / "run")
    process = start(words, env={**os.environ, "LD_PRELOAD": str(tmp_path / "no_locks.so")})
    printed = process.communicate()[1]
    assert process.returncode == 0, printed
    for folder in ["out", "models"] if kind == "fit" else ["out"]:
        assert (
            printed.count(f"{tmp_path / 'run' / folder}: cannot be locked (No locks available); let no other run") == 1
        )
    found = {name: content for name, content in results(tmp_path / "run").items() if not name.endswith(".lock")}
    assert found == undisturbed[kind][0]


ON_SMALL_DISK = """
mount -t tmpfs -o size="$1"k tmpfs "$2"
"${@:4}" 2> "$3/first.txt"; echo $? > "$3/first.code"; ls -A "$2/out" > "$3/first.list"
mount -o remount,size=500m "$2"
"${@:4}" 2> "$3/second.txt"; echo $? > "$3/second.code"; cp -a "$2" "$3/copy"
"""


@pytest.mark.parametrize("share", [0.02, 0.4, 0.8, 0.97, 1.06])
@pytest.mark.parametrize("kind", CONFIGS)
def test_run_on_a_full_disk_ends_with_a_message_and_is_finished_later(
    kind, share, labels, model, undisturbed, tmp_path
):
    """The journal, a label map, a table, the weights or the report is what finds no space."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare is not permitted")
    disk, kept, expected = tmp_path / "disk", tmp_path / "kept", undisturbed[kind][0]
    disk.mkdir()
    kept.mkdir()
    size = int(share * sum(len(content) for content in expected.values()) / 1024)
    words = ["bash", "-c", ON_SMALL_DISK, "bash", str(size), str(disk), str(kept), *command(kind, labels, model, disk)]
    subprocess.run(["unshare", "-rm", *words], cwd=ROOT, check=True)
    printed = (kept / "first.txt").read_text()
    assert (kept / "first.code").read_text() == "1\n", printed
    assert "Traceback" not in printed
    assert "No space left on device" in printed or "disk is full" in printed
    assert str(disk) in printed.split("error: ")[-1]
    assert ".tmp-" not in (kept / "first.list").read_text()
    assert (kept / "second.code").read_text() == "0\n", (kept / "second.txt").read_text()
    assert results(kept / "copy") == expected
