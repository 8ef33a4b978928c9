"""A client of MONAI FL in a process of its own, with a packed bundle."""

import json
from pathlib import Path

import pytest
import torch

from tests.clients.bundles import copy_bundle, own_run, set_values, tiny_bundle
from tests.clients.programs import PROJECT_PYTHON, run
from tests.conftest import TINY_OF

FEDERATED = Path(__file__).parent / "drivers" / "federated.py"


SMALL_TRAINING = {
    "ultrabones": {"batch_size": 2},
    "universeg": {"episodes": 4, "val_episodes": 2, "batch_size": 2},
    "segvol": {"max_epochs": 2, "pseudo_per_sample": 0},
}
DATA = {"ultrabones": "ultrasound_data", "universeg": "torso_data", "segvol": "torso_data"}


def rounds_of(bundle, data, folder, metric, *configs):
    """Train two rounds from the bundle's weights; return what they gave, and leave the weights in the bundle."""
    arguments = [bundle, data, folder / "site", metric, *configs]
    output = run(PROJECT_PYTHON, FEDERATED, *arguments, cwd=folder, PYTHONPATH=str(bundle))
    (line,) = (line for line in output.splitlines() if line.startswith("ROUNDS "))
    aggregated = torch.load(folder / "site" / "aggregated.pt", weights_only=True)
    torch.save(aggregated, bundle / "models" / "model.pt")
    return json.loads(line.removeprefix("ROUNDS "))


def assert_trained(rounds):
    assert [each["epoch"] for each in rounds] == [1, 2]
    assert min(each["moved"] for each in rounds) > 0, "a round left the weights as they were"
    assert all(0 <= each["score"] <= 1 for each in rounds)


def test_client_trains_two_rounds_from_the_weights_of_the_server(packed, torso_data, torso, tmp_path):
    """With the bundle's folder on the Python path, as the docs say."""
    bundle = copy_bundle(packed / "swin_bob_btcv", tmp_path)
    assert_trained(rounds_of(bundle, torso_data, tmp_path, "mean_dice"))
    own_run(bundle, torso, tmp_path / "out")


@pytest.mark.parametrize("name", ["ultrabones", "universeg", "segvol"])
def test_client_trains_what_is_validated_as_in_training(request, tmp_path, name):
    """By batches, on held-out donors, tasks or prompts; the weights have the names that inference loads."""
    bundle = tiny_bundle(name, tmp_path, seed=1)
    network = {key: value for key, value in TINY_OF[name].items() if key != "text"}  # inference alone has it
    set_values(bundle, "train", {**network, **SMALL_TRAINING[name]})
    data = request.getfixturevalue(DATA[name])
    assert_trained(rounds_of(bundle, data, tmp_path, "val_mean_dice", "configs/train.json"))
