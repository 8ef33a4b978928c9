import pytest
import torch

from scripts.common.errors import InputError
from scripts.segvol.embeddings import Embeddings
from tests.scripts.models.tiny_networks import TINY_SEGVOL, tiny_segvol

WINDOW = torch.rand(1, 1, *TINY_SEGVOL["spatial_size"], generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoded(monkeypatch):
    """A network, and a list that grows with each window that it encodes."""
    network, calls = tiny_segvol(), []
    encode = network.encode_image
    monkeypatch.setattr(network, "encode_image", lambda image: (calls.append(image), encode(image))[1])
    return network, calls


def test_window_of_the_same_image_is_encoded_once(encoded):
    network, calls = encoded
    embeddings = Embeddings(2)
    for _ in range(2):
        embeddings.use(WINDOW[0, 0].clone(), network)
        found = embeddings.get("a", lambda: WINDOW, network)
    assert len(calls) == 1
    torch.testing.assert_close(found, network.encode_image(WINDOW))


@pytest.mark.parametrize("change", ["one voxel", "weights"])
def test_other_image_or_weights_are_encoded_anew(encoded, change):
    network, calls = encoded
    embeddings, image = Embeddings(2), WINDOW[0, 0].clone()
    embeddings.use(image, network)
    embeddings.get("a", lambda: WINDOW, network)
    if change == "weights":
        network.load_state_dict(network.state_dict())
    else:
        image = image.clone()
        image[1, 1, 1] += 1e-6
    embeddings.use(image, network)
    embeddings.get("a", lambda: WINDOW, network)
    assert len(calls) == 2


def test_those_used_last_are_kept(encoded):
    network, calls = encoded
    embeddings = Embeddings(2)
    for key in "abaca":
        embeddings.get(key, lambda: WINDOW, network)
    assert len(calls) == 3
    embeddings.get("b", lambda: WINDOW, network)
    assert len(calls) == 4


def test_none_kept_is_refused():
    with pytest.raises(InputError, match=r"kept_embeddings is 0: give 1 or more\."):
        Embeddings(0)
