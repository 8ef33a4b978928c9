import pytest
import torch
from einops import rearrange
from torch.nn.functional import layer_norm

from scripts.common.errors import InputError
from scripts.models.clip_text import CLIPText

SMALL = {"width": 8, "layers": 2, "heads": 2, "mlp_dim": 12, "vocabulary": 20, "context": 7}
TOKENS = torch.tensor([[18, 3, 4, 5, 19, 19], [18, 6, 19, 19, 19, 19]])


@pytest.fixture
def tower():
    torch.manual_seed(0)
    network = CLIPText(**SMALL).eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(len(tensor)) + (0.5 if "norm" in name else 0))
    return network


def literal(state, tokens):
    """The formulas of the specification for one text, one after the other."""
    state = {key.removeprefix("text_model."): value for key, value in state.items()}

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    x = state["embeddings.token_embedding.weight"][tokens]
    x = x + state["embeddings.position_embedding.weight"][: len(tokens)]
    future = torch.full((len(tokens), len(tokens)), float("-inf")).triu(1)
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        inner = norm(x, f"{layer}.layer_norm1")
        q, k, v = (
            rearrange(linear(inner, f"{layer}.self_attn.{part}_proj"), "n (head dim) -> head n dim", head=2)
            for part in "qkv"
        )
        inner = ((q * 4**-0.5) @ k.mT + future).softmax(-1) @ v
        x = x + linear(rearrange(inner, "head n dim -> n (head dim)"), f"{layer}.self_attn.out_proj")
        inner = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        x = x + linear(inner / (1 + torch.exp(-1.702 * inner)), f"{layer}.mlp.fc2")
    return norm(x, "final_layer_norm")[tokens.tolist().index(tokens.max())]


def test_vectors_are_those_of_the_formulas(tower):
    expected = torch.stack([literal(tower.state_dict(), tokens) for tokens in TOKENS])
    torch.testing.assert_close(tower(TOKENS), expected, rtol=1e-4, atol=1e-5)


def test_what_follows_the_end_does_not_matter(tower):
    torch.testing.assert_close(tower(TOKENS[1:]), tower(TOKENS[1:, :3]))


def test_text_beyond_the_context_is_refused(tower):
    with pytest.raises(InputError, match="a text has 8 tokens: shorten it to 7"):
        tower(torch.zeros(1, 8, dtype=torch.int64))
