"""Small label maps, and a function of a case that records its calls."""

import os
import sys
import time

import cloudpickle
import nibabel as nib
import numpy as np
import pytest

from scripts.cohort.journal import Journal
from scripts.cohort.run import run_cohort

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import what tests import


def voxel_counts(case):
    """Count the voxels of each label with code of the package, and record the call and its process in a file."""
    import uuid
    from pathlib import Path

    from scripts.common.label_maps import count_voxels
    from scripts.io.nifti import read_nifti

    if "calls" in case:
        Path(case["calls"], f"{case['case']}.{os.getpid()}.{uuid.uuid4().hex}").touch()
    return count_voxels(read_nifti(case["image"]).stored).tobytes()


def write_maps(folder, count):
    rng, maps = np.random.default_rng(0), folder / "maps"
    maps.mkdir()
    (folder / "calls").mkdir()
    for index in range(count):
        label = rng.integers(0, 4, (9, 8, 7)).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, np.diag([2.0, 2, 3, 1])), maps / f"m{index:02d}.nii")
    return [{"case": p.stem, "image": str(p), "calls": str(folder / "calls")} for p in sorted(maps.iterdir())]


def calls(folder):
    return [path.name.split(".") for path in (folder / "calls").iterdir()]


def run(function, cases, path, **options):
    """Run a cohort and return its failures and all payloads as one."""
    with Journal(path, settings="test") as journal:
        failures = run_cohort(function, cases, journal=journal, **options)
        return failures, b"".join(name.encode() + payload for name, payload in journal.payloads(cases))


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail("timed out")
        time.sleep(0.01)
