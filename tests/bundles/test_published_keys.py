"""Networks of default size have exactly the tensors of the published weights."""

import csv
import hashlib

import pytest
import torch

from scripts.models.segvol import SegVol
from scripts.models.ultrabones import UltraBones
from scripts.models.universeg import UniverSeg
from tests.conftest import ROOT

KEYS = ROOT.parent / "shared" / "specs" / "keys"
PUBLISHED = {
    "segvol": (SegVol, 474, 180_890_064, "326c15c5d92fc963a8e5e64b05be82eff09ae7681c81f3d33595a76d7b4a52f1"),
    "ultrabones": (UltraBones, 247, 23_149_121, "b358d1b0edd7ab26fbc65027e426a8e6710fdbcba0753cb72d2a26d5012c35a0"),
    "universeg": (UniverSeg, 44, 1_182_785, "0102de58aea13ae96c0ae50f7e4148e2a018410a76d1718af97e55712dbfe5e5"),
}
"""Network, number of tensors and of parameters, and SHA-256 of the sorted names and shapes."""


@pytest.fixture(params=PUBLISHED)
def name(request):
    return request.param


@pytest.fixture
def network(name):
    with torch.device("meta"):
        return PUBLISHED[name][0]()


def test_default_network_has_the_names_and_shapes_of_the_published_weights(network, name):
    _, tensors, parameters, digest = PUBLISHED[name]
    state = network.state_dict()
    lines = sorted(f"{key} {','.join(str(n) for n in tensor.shape)}" for key, tensor in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest
    assert len(state) == tensors
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_default_network_has_the_listed_tensors_in_their_order(network, name):
    listed = KEYS / f"{name}_state_dict.tsv"
    if not listed.is_file():
        pytest.skip(f"{listed} is absent")
    rows = [tuple(row[:3]) for row in csv.reader(listed.open(), delimiter="\t")]
    assert [(key, str(tuple(value.shape)), str(value.dtype)) for key, value in network.state_dict().items()] == rows
