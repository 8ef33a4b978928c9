import resource
import subprocess
import sys

import psutil
import pytest

from scripts.common.errors import InputError
from scripts.io import memory
from scripts.io.memory import MAX_VOXELS, free_bytes, require_memory_for
from tests.conftest import ROOT

GB = 10**9


@pytest.fixture
def free(monkeypatch):
    def set_to(n_bytes):
        monkeypatch.setattr(memory, "free_bytes", lambda: n_bytes)

    return set_to


def test_volume_is_counted_with_its_float_copy(free):
    free(6 * GB)
    require_memory_for((1000, 1000, 1000), 2, name="ct.nii")
    message = r"^ct\.nii: 1000 x 1000 x 1000 voxels need 8\.00 GB of memory, 6\.00 GB are free; crop or resample it,"
    with pytest.raises(InputError, match=message):
        require_memory_for((1000, 1000, 1000), 4, name="ct.nii")


def test_whole_body_ct_fits_wherever_there_is_memory(free):
    free(64 * GB)
    require_memory_for((512, 512, 2500), 2, name="ct.nii")


def test_more_voxels_than_libraries_can_count_are_refused_on_any_machine(free):
    free(10**15)
    require_memory_for((MAX_VOXELS, 1, 1), 1, name="ct.nii")
    with pytest.raises(InputError, match=r"^ct\.nii: has 2048 x 2048 x 512 voxels, more than 2\.1 billion; crop or"):
        require_memory_for((2048, 2048, 512), 1, name="ct.nii")


def write_group(folder, limit, used, freeable, *, version):
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    entry = "inactive_file" if version == 2 else "total_inactive_file"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*names, "memory.stat"), (limit, used, f"anon 7\n{entry} {freeable}"), strict=True):
        (folder / name).write_text(f"{text}\n")


@pytest.fixture
def proc(tmp_path):
    def write(text):
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(text)

    return write


def test_limit_of_a_parent_cgroup_counts_and_cached_files_do_not(tmp_path, proc):
    proc("0::/slice/job/step\n")
    write_group(tmp_path / "sys/fs/cgroup/slice/job/step", "max", 5000, 0, version=2)
    write_group(tmp_path / "sys/fs/cgroup/slice/job", 9000, 8000, 2500, version=2)
    assert free_bytes(tmp_path) == 3500


def test_cgroups_of_version_1_count(tmp_path, proc):
    proc("5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    write_group(tmp_path / "sys/fs/cgroup/memory/job", 9000, 8000, 500, version=1)
    write_group(tmp_path / "sys/fs/cgroup/memory", 2**63 - 4096, 8000, 0, version=1)
    assert free_bytes(tmp_path) == 1500


def test_container_sees_its_own_cgroup_at_the_root(tmp_path, proc):
    """Docker on version 1: the path is that of the host."""
    proc("4:memory:/docker/0123\n")
    write_group(tmp_path / "sys/fs/cgroup/memory", 9000, 8000, 0, version=1)
    assert free_bytes(tmp_path) == 1000


def test_without_limits_the_memory_of_the_machine_counts(tmp_path):
    available = psutil.virtual_memory().available
    assert free_bytes(tmp_path) == pytest.approx(available, rel=0.2)


def test_limit_of_the_address_space_counts():
    code = "from scripts.io.memory import free_bytes; print(free_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * GB, 4 * GB)),
    )
    assert 0 < int(done.stdout) < 4 * GB
