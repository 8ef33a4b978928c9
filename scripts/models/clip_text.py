"""The text tower of CLIP, with the names of the weights that Hugging Face publishes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from scripts.common.errors import InputError


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected)
        return self.out_proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = _MLP(width, mlp_dim)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.token_embedding(token_ids) + self.position_embedding.weight[: token_ids.shape[1]]


class _Encoder(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, mlp_dim) for _ in range(layers))


class _TextModel(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, mlp_dim: int, vocabulary: int, context: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(vocabulary, context, width)
        self.encoder = _Encoder(width, layers, heads, mlp_dim)
        self.final_layer_norm = nn.LayerNorm(width)


class CLIPText(nn.Module):
    """Turn the tokens of a text into one vector, that of the token at its end.

    What stands after the end does not change the vector, because tokens see only those before them.

    Args:
        width: features of a token.
        layers: transformer blocks.
        heads: of their attention.
        mlp_dim: hidden features of their MLPs.
        vocabulary: number of tokens; the last one is the end of a text.
        context: number of tokens of the longest text.

    Shape:
        token_ids (B, L), int64, become (B, width).

    Raises:
        InputError: a text is longer than the context.

    Source:
        Radford et al. Learning Transferable Visual Models From Natural Language Supervision. ICML 2021; the default
        sizes are those of ViT-B/32.
    """

    def __init__(
        self,
        *,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        mlp_dim: int = 2048,
        vocabulary: int = 49408,
        context: int = 77,
    ) -> None:
        super().__init__()
        self.text_model = _TextModel(width, layers, heads, mlp_dim, vocabulary, context)
        self.width, self.context = width, context

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the vectors of texts."""
        if token_ids.shape[1] > self.context:
            raise InputError(f"a text has {token_ids.shape[1]} tokens: shorten it to {self.context}.")
        x = self.text_model.embeddings(token_ids)
        for layer in self.text_model.encoder.layers:
            x = layer(x)
        ends = token_ids.argmax(dim=1)  # the first of them
        return self.text_model.final_layer_norm(x[torch.arange(len(x), device=x.device), ends])


class TowerMark(nn.Module):
    """What is kept of a text tower that a network is made without: its position embedding, which tells towers apart.

    Stored features of texts say so of which tower they are; see `scripts.models.text_features`.

    Args:
        width: features of a token.
        context: number of tokens of the longest text.
    """

    def __init__(self, *, width: int, context: int) -> None:
        super().__init__()
        self.text_model = nn.Module()
        self.text_model.embeddings = nn.Module()
        self.text_model.embeddings.position_embedding = nn.Embedding(context, width)
