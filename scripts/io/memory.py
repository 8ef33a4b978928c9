"""Free memory, within the limits of this process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from scripts.common.errors import InputError

MAX_VOXELS = 2**31 - 1
"""Three whole-body CTs of 512 x 512 x 2500; operators of torch and libraries count voxels in 32 bits."""
_CGROUP_FILES = {  # folder, limit, use, and the entry of memory.stat that the system can free
    2: ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def require_memory_for(shape: Sequence[int], itemsize: int, *, name: str) -> None:
    """Refuse a volume that does not fit into memory: the system would kill the process, and with it the whole run.

    Args:
        shape: of the volume.
        itemsize: bytes of a voxel as the file stores it; a float32 copy is counted too.
        name: of the file, for the message.

    Raises:
        InputError: less is free, or there are more than `MAX_VOXELS`.
    """
    voxels, size = math.prod(shape), " x ".join(map(str, shape))
    needed, free = voxels * (itemsize + 4), free_bytes()
    if voxels > MAX_VOXELS:
        raise InputError(f"{name}: has {size} voxels, more than {MAX_VOXELS / 1e9:.1f} billion; crop or resample it.")
    if needed > free:
        raise InputError(
            f"{name}: {size} voxels need {needed / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free; crop or "
            "resample it, lower num_workers, or use a machine with more memory."
        )


def free_bytes(root: Path = Path("/")) -> int:
    """Return how much memory this process can still use.

    Args:
        root: of the file system, for tests.

    Returns:
        The least of what is free on the machine, in each cgroup of the process (containers and jobs of a cluster have
        one) and in its address space (`ulimit -v`).
    """
    free = [psutil.virtual_memory().available, *_free_in_cgroups(root)]
    process = psutil.Process()
    if hasattr(process, "rlimit"):  # Linux and FreeBSD
        limit = process.rlimit(psutil.RLIMIT_AS)[0]
        free += [] if limit == psutil.RLIM_INFINITY else [limit - process.memory_info().vms]
    return max(0, min(free))


def _free_in_cgroups(root: Path) -> Iterator[int]:
    """Yield the free memory of each cgroup with a limit that this process is in, version 1 and 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1 if "memory" in controllers.split(",") else 0
        if not version:
            continue
        folder, limit, used, freeable = _CGROUP_FILES[version]
        parts = Path(path).parts[1:]
        for depth in range(len(parts) + 1):
            group = root.joinpath(folder, *parts[:depth])
            if (most := _read(group / limit).strip()).isdigit():
                stat = dict(entry.split() for entry in _read(group / "memory.stat").splitlines())
                yield int(most) - int(_read(group / used) or 0) + int(stat.get(freeable, 0))


def _read(path: Path) -> str:
    """Return the content of a file of the system; "" if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
