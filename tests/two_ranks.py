"""Train a bundle with two processes; also the program that torchrun starts, with settings of JSON and a folder."""

import json
import os
import subprocess
import sys

import torch
import torch.distributed as dist
from monai.bundle import ConfigWorkflow

from tests.conftest import ROOT


def train_on_two_ranks(bundle, folder, **settings):
    """Return what each process holds at the end: the weights of the network, and the metrics of the last validation."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = ["-m", "tests.two_ranks", bundle, json.dumps(settings), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def main(bundle, settings, folder):
    bundle_root = ROOT / "bundles" / bundle
    configs = [str(bundle_root / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    given = {"bundle_root": str(bundle_root), **json.loads(settings)}
    workflow = ConfigWorkflow(configs, workflow_type="train", logging_file=False, **given)
    workflow.initialize()
    workflow.run()
    network = workflow.parser.get_parsed_content("network").module.state_dict()
    metrics = {key: float(value) for key, value in workflow.evaluator.state.metrics.items()}
    torch.save({"network": network, "metrics": metrics}, f"{folder}/rank{dist.get_rank()}.pt")
    workflow.finalize()


if __name__ == "__main__":
    main(*sys.argv[1:])
