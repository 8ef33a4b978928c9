"""Settings of OpenMP and malloc that a process must start with, for training and inference on a CPU.

By default, threads of GNU OpenMP that wait for others spin. Beside other processes they take the cores from the threads
that they wait for. The C library gives large tensors back to the kernel when they are freed, and each new one causes
page faults.
"""

from __future__ import annotations

import logging
import os
import sys

import torch

from scripts.common.errors import is_bundle_run

logger = logging.getLogger(__name__)

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30)}
SETTINGS = {**PASSIVE, **MALLOC}


def restart_with_settings() -> None:
    """Start `python -m monai.bundle` again, in the same process, if it runs on CPU threads without `SETTINGS`.

    Both libraries read them once, before torch is imported, which MONAI does before it reads a config. Variables that
    are set keep their values. With all of them set, with one thread, with a GPU, on systems other than Linux and in
    other programs nothing happens.
    """
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if not missing or not is_bundle_run() or sys.platform != "linux":
        return
    if torch.cuda.is_available() or torch.get_num_threads() == 1:
        return
    logger.info("restarting with %s", " ".join(f"{name}={value}" for name, value in missing.items()))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
