"""The SLURM script, with stand-ins for SLURM's commands, on this machine."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, command_line, training_settings

BUNDLES = ["swin_bob_btcv", "swin_bob_brats", "swin_bob_pretrain"]
STAND_INS = {
    "srun": '#!/bin/bash\necho $$ > "$SLURM_STAND_IN/srun.pid"\nexec "$@"\n',
    "scontrol": '#!/bin/bash\n[ "$1" = show ] && echo localhost || echo "$@" > "$SLURM_STAND_IN/requeued"\n',
    "scancel": f"""#!{sys.executable}
# as SLURM: the signal goes to all processes of the step
import os, pathlib, psutil, sys
step = psutil.Process(int(pathlib.Path(os.environ["SLURM_STAND_IN"], "srun.pid").read_text()))
assert sys.argv[1:] == ["--signal=USR1", "7"], sys.argv
for process in [step, *step.children(recursive=True)]:
    process.send_signal(10)
""",
}


def script(bundle):
    return ROOT / "bundles" / bundle / "docs" / "slurm.sh"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_scripts_differ_only_in_their_example(bundle):
    assert subprocess.run(["bash", "-n", script(bundle)]).returncode == 0
    example = re.compile(r"^#   cd bundles/.*$", re.MULTILINE)
    first, own = (example.sub("", script(name).read_text()) for name in (BUNDLES[0], bundle))
    assert own == first
    assert f"cd bundles/{bundle} " in script(bundle).read_text()


@pytest.fixture
def slurm(tmp_path):
    """Environment of a job of two processes on this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node[1]", "PROCESSES_PER_NODE": "2"}
    job |= {"SLURM_STAND_IN": str(tmp_path), "RDZV_PORT": "0", "CKPT_DIR": str(tmp_path / "models")}
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, **job, "PATH": path, "OMP_NUM_THREADS": "1"}


def test_job_that_is_signalled_saves_is_requeued_and_ends_in_the_next_one(slurm, torso_data, tmp_path):
    datalist = json.loads((torso_data / "dataset_0.json").read_text())
    datalist["validation"] += [{"image": item["image"], "label": item["label"]} for item in datalist["test"]]
    (torso_data / "two_ranks.json").write_text(json.dumps({**datalist, "test": []}))
    settings = training_settings(torso_data, tmp_path, max_epochs=3, datalist_file="two_ranks.json", val_interval=3)
    del settings["ckpt_dir"]
    command = ["bash", str(script("swin_bob_btcv")), *command_line(settings)]
    options = {"cwd": ROOT / "bundles" / "swin_bob_btcv", "env": slurm, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen(command, **options)
    last = tmp_path / "models" / "training_state.ckpt"
    while not last.is_file() and job.poll() is None:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    stderr = job.communicate()[1]
    assert job.returncode == 0, stderr
    assert torch.load(last, weights_only=True)["epoch"] < 3
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    (tmp_path / "requeued").unlink()
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    assert torch.load(last, weights_only=True)["epoch"] == 3
    assert not (tmp_path / "requeued").exists()
