"""A client of MONAI FL in a process of its own, with a packed bundle."""

import json
from pathlib import Path

import torch

from tests.clients.bundles import copy_bundle, own_run
from tests.clients.programs import PROJECT_PYTHON, run

FEDERATED = Path(__file__).parent / "drivers" / "federated.py"


def test_client_trains_two_rounds_from_the_weights_of_the_server(packed, torso_data, torso, tmp_path):
    """With the bundle's folder on the Python path, as the docs say."""
    bundle = copy_bundle(packed / "swin_bob_btcv", tmp_path)
    arguments = [bundle, torso_data, tmp_path / "site"]
    output = run(PROJECT_PYTHON, FEDERATED, *arguments, cwd=tmp_path, PYTHONPATH=str(bundle))
    (line,) = (line for line in output.splitlines() if line.startswith("ROUNDS "))
    first, second = json.loads(line.removeprefix("ROUNDS "))
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert min(first["moved"], second["moved"]) > 0, "a round left the weights as they were"
    assert all(0 <= each["mean_dice"] <= 1 for each in (first, second))
    aggregated = torch.load(tmp_path / "site" / "aggregated.pt", weights_only=True)
    torch.save(aggregated, bundle / "models" / "model.pt")
    own_run(bundle, torso, tmp_path / "out")
