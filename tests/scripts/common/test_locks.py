import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from scripts.common.errors import InputError
from scripts.common.locks import LOCK_NAME, FolderLock
from tests.conftest import ROOT

LEFTOVER = ".tmp-0123456789abcdef.nii.gz"


def start(code, folder):
    """Start a Python process and wait for the first line that it prints."""
    imports = "import os, signal, sys, time\nfrom scripts.common.locks import FolderLock\n"
    process = subprocess.Popen(
        [sys.executable, "-c", imports + code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


HOLD = "with FolderLock(sys.argv[1]):\n    print('locked', flush=True)\n    time.sleep(60)"


def test_second_run_is_refused_with_host_process_and_start_of_the_first(tmp_path):
    process, _ = start(HOLD, tmp_path)
    (tmp_path / LEFTOVER).touch()  # of the first run
    try:
        with pytest.raises(InputError) as error, FolderLock(tmp_path, setting="ckpt_dir"):
            pass
    finally:
        process.kill()
        process.wait()
    host, number = re.escape(socket.gethostname()), process.pid
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"
    expected = rf"{tmp_path}: another run is using this folder \(host {host}, process {number}, since {since}\); "
    assert re.fullmatch(expected + r"wait until it ends, or set another ckpt_dir\.", str(error.value))
    assert (tmp_path / LEFTOVER).exists(), "the first run may be writing it"


def test_lock_of_a_killed_run_is_free_and_its_temporary_files_are_removed(tmp_path):
    process, _ = start(HOLD, tmp_path)
    process.kill()
    process.wait()
    (tmp_path / LEFTOVER).touch()
    (tmp_path / "a_seg.nii.gz").touch()
    assert (tmp_path / LOCK_NAME).exists()
    with FolderLock(tmp_path):
        assert not (tmp_path / LEFTOVER).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a_seg.nii.gz"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit])
def test_lock_ends_with_the_block_however_it_ends(tmp_path, stop):
    for _ in range(2):
        with pytest.raises(stop), FolderLock(tmp_path):
            raise stop
    assert list(tmp_path.iterdir()) == []


def test_one_lock_serves_several_runs_and_excludes_others_of_the_same_process(tmp_path):
    lock = FolderLock(tmp_path)
    for _ in range(2):
        with lock, pytest.raises(InputError, match=f"process {os.getpid()}"), FolderLock(tmp_path):
            pass


def test_forked_process_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    code = """
with FolderLock(sys.argv[1]):
    child = os.fork()
    if child:
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""
    process, child = start(code, tmp_path)
    process.wait()
    try:
        with FolderLock(tmp_path):
            pass
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_forked_process_that_ends_does_not_free_the_lock_of_its_parent(tmp_path):
    with FolderLock(tmp_path):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(InputError, match="another run"), FolderLock(tmp_path):
            pass


def test_run_that_is_about_to_end_is_waited_for(tmp_path):
    code = "with FolderLock(sys.argv[1]):\n    print('locked', flush=True)\n    time.sleep(0.1)"
    process, _ = start(code, tmp_path)
    with FolderLock(tmp_path):
        pass
    assert process.wait() == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_file_system_without_locks_is_warned_of_and_the_run_goes_on(tmp_path, monkeypatch, caplog, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / LEFTOVER).touch()
    with FolderLock(tmp_path) as lock:
        lock.check()
    assert caplog.messages == [
        f"{tmp_path}: cannot be locked ({os.strerror(number)}); let no other run use this folder"
    ]
    assert [path.name for path in tmp_path.iterdir()] == [LEFTOVER], "without a lock, it may be of another run"


def test_lock_file_that_tells_nothing_is_refused_all_the_same(tmp_path):
    with FolderLock(tmp_path) as lock:
        lock.path.write_text("{")
        with pytest.raises(InputError, match=r"is using this folder; wait"), FolderLock(tmp_path):
            pass


def test_folder_that_is_removed_or_replaced_during_the_run_is_noticed(tmp_path):
    folder = tmp_path / "out"
    with FolderLock(folder) as lock:
        lock.check()
        folder.rename(tmp_path / "moved")
        with pytest.raises(InputError, match=r"out: was removed or replaced during the run; run again\."):
            lock.check()
        with FolderLock(folder) as other:
            with pytest.raises(InputError, match="replaced"):
                lock.check()
            lock.__exit__(None, None, None)
            other.check()


def test_new_folder_without_results_is_removed_again(tmp_path):
    with FolderLock(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    with FolderLock(tmp_path / "new"):
        (tmp_path / "new" / "a_seg.nii.gz").touch()
    assert (tmp_path / "new" / "a_seg.nii.gz").exists()


def test_full_disk_is_noticed_at_once_and_the_new_folder_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(InputError, match=r"free space, or set another ckpt_dir"):
        FolderLock(tmp_path / "new", setting="ckpt_dir").__enter__()
    assert not (tmp_path / "new").exists()


def test_folder_that_cannot_be_written_is_named_with_its_setting(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written \(File exists\); set another ckpt_dir"):
        FolderLock(tmp_path / "file", setting="ckpt_dir").__enter__()


CONTEND = """
end = time.monotonic() + 3
runs = 0
print("started", flush=True)
while time.monotonic() < end:
    try:
        with FolderLock(sys.argv[1]):
            os.close(os.open(sys.argv[1] + "/inside", os.O_CREAT | os.O_EXCL))
            time.sleep(0.002)
            os.unlink(sys.argv[1] + "/inside")
            runs += 1
    except ValueError:
        pass
print(runs)
"""


@pytest.mark.hostile
def test_no_two_of_many_processes_are_ever_inside(tmp_path):
    processes = [start(CONTEND, tmp_path)[0] for _ in range(6)]
    runs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 6
    assert sum(map(int, runs)) > 6
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []
