"""Measure time and memory of one way to segment one volume: `python -m benchmarks.etta.cost PART SIZE SETTINGS`.

Each measurement runs in its own process, which prints seconds and MB as JSON. The network has random weights; time and
memory do not depend on them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SwinUNETR

from benchmarks.etta.networks import ARCHITECTURE, WINDOW
from benchmarks.etta.objectives import etta_settings
from benchmarks.restore import memory_mb
from scripts.etta.core import adapted
from scripts.etta.inferer import ETTAInferer
from scripts.inference.window_layout import WindowLayout

SIZES = {8: 96, 27: 128, 64: 160}  # windows: voxels along each axis
# The C library keeps small blocks after they are freed. With this it returns them, so that resident is in use.
IN_USE = {"MALLOC_MMAP_THRESHOLD_": "1048576"}


def inferer() -> SlidingWindowInferer:
    """Return the bundle's inferer at the demo's size."""
    return SlidingWindowInferer(
        roi_size=(WINDOW,) * 3, sw_batch_size=1, overlap=0.5, mode="gaussian", padding_mode="replicate"
    )


def measure(part: str, size: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Run one part on a volume of `size` voxels along each axis.

    Args:
        part: `plain`, `training step` on one window, `adapting` without the prediction, or `case`, which is both.
        size: in voxels.
        settings: of `ETTASettings`.

    Returns:
        Seconds of CPU time, which other programs hardly change, and the peak memory above that at the start, in MB.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, image = SwinUNETR(**ARCHITECTURE).eval(), torch.rand(1, 1, size, size, size)
    etta = etta_settings(settings)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    if part == "training step":
        network(image[..., :WINDOW, :WINDOW, :WINDOW]).square().mean().backward()
    elif part == "adapting":
        with torch.no_grad(), adapted(network, image, WindowLayout.of(inferer(), image.shape[2:]), etta):
            pass
    else:
        predict = inferer() if part == "plain" else ETTAInferer(inferer(), etta)
        with torch.no_grad():
            predict(image, network)
    return {"seconds": time.process_time() - start, "peak_mb": memory_mb("VmHWM") - before}


def in_a_process(part: str, windows: int, settings: Mapping[str, Any] | None = None, **env: str) -> dict[str, float]:
    """Run `measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.etta.cost", part, str(SIZES[windows]), json.dumps(settings or {})]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **env})
    return json.loads(done.stdout.splitlines()[-1])


def time_table(ways: Mapping[str, Mapping[str, Any]], ours: str) -> pd.DataFrame:
    """Time all ways on 27 windows, and ours also on 8 and 64, as multiples of the plain network."""
    rows = []
    for windows in SIZES:
        plain = in_a_process("plain", windows)["seconds"]
        for way in ways if windows == 27 else [ours]:
            seconds = in_a_process("case", windows, ways[way])["seconds"]
            rows.append({"way": way, "windows": windows, "time_over_plain": seconds / plain})
    return pd.DataFrame(rows)


def memory_table() -> pd.DataFrame:
    """Measure peak memory by the number of windows: in use by tensors, and held by the process."""
    step = in_a_process("training step", 8, **IN_USE)["peak_mb"]
    rows = []
    for windows in (8, 64):
        plain, adapting = (in_a_process(part, windows, **IN_USE)["peak_mb"] for part in ("plain", "adapting"))
        row = {"windows": windows, "training_step_mb": step, "plain_mb": plain, "adapting_mb": adapting}
        row["peak_over_plain_and_step"] = max(plain, adapting) / (plain + step)
        held = {f"held_{part}_mb": in_a_process(part, windows)["peak_mb"] for part in ("plain", "case")}
        rows.append({**row, **held})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))))
