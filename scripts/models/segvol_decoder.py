"""The mask decoder of SegVol: tokens of prompts and the embedding of an image become logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import relu, scaled_dot_product_attention

MASK_TOKENS, IOU_HIDDEN, DOWNSAMPLING, UPSCALING = 4, 256, 2, 4


class Attention(nn.Module):
    """Attention of several heads, whose projections may be narrower than their input."""

    def __init__(self, channels: int, heads: int, *, downsampling: int = 1) -> None:
        super().__init__()
        self.heads, width = heads, channels // downsampling
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, width) for _ in range(3))
        self.out_proj = nn.Linear(width, channels)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend: (B, N, C), (B, M, C), (B, M, C) become (B, N, C)."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        return self.out_proj(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class _TokenMLP(nn.Module):
    """Two linear layers of a transformer's block."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin2(relu(self.lin1(x)))


class _HeadMLP(nn.Module):
    """Three linear layers, with ReLU between them."""

    def __init__(self, channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        sizes = [(channels, hidden), (hidden, hidden), (hidden, out_channels)]
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[2](relu(self.layers[1](relu(self.layers[0](x)))))


class _TwoWayLayer(nn.Module):
    """Attention among tokens, from tokens to the image, and back."""

    def __init__(self, channels: int, heads: int, mlp_dim: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, heads, downsampling=DOWNSAMPLING)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _TokenMLP(channels, mlp_dim)
        self.norm3, self.norm4 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, heads, downsampling=DOWNSAMPLING)

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, token_code: torch.Tensor, image_code: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new tokens and image, of the shapes (B, N, C) and (B, V, C) that they have."""
        if self.first:  # without residual and without code
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            coded = tokens + token_code
            tokens = tokens + self.self_attn(coded, coded, tokens)
        tokens = self.norm1(tokens)
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_code, image + image_code, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(image + image_code, tokens + token_code, tokens)
        return tokens, self.norm4(image)


class _TwoWayTransformer(nn.Module):
    """Layers in both directions, then once more from the tokens to the image."""

    def __init__(self, channels: int, *, layers: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TwoWayLayer(channels, heads, mlp_dim, first=i == 0) for i in range(layers))
        self.final_attn_token_to_image = Attention(channels, heads, downsampling=DOWNSAMPLING)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self, token_code: torch.Tensor, image: torch.Tensor, image_code: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and image; the tokens are at first their own code of places."""
        tokens = token_code
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_code, image_code)
        tokens = tokens + self.final_attn_token_to_image(tokens + token_code, image + image_code, image)
        return self.norm_final_attn(tokens), image


class MaskDecoder(nn.Module):
    """Decode the logits of what prompts mean, at four times the size of the image's embedding.

    The weights hold four mask tokens with a network each, and an estimate of the overlap. Only the first mask is used;
    the others are never computed and need no gradient.

    Args:
        channels: of tokens and embedding, a multiple of 8 and of twice the heads.
        grid_size: of the embedding, which the size of a normalization depends on.
        layers: of the two-way transformer.
        heads: of its attention.
        mlp_dim: hidden features of its MLPs.
    """

    def __init__(self, channels: int, *, grid_size: Sequence[int], layers: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.transformer = _TwoWayTransformer(channels, layers=layers, heads=heads, mlp_dim=mlp_dim)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, channels)
        middle, last = channels // 4, channels // 8
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(channels, middle, 2, stride=2),
            nn.LayerNorm([middle, *(2 * n for n in grid_size)]),
            nn.GELU(),
            nn.ConvTranspose3d(middle, last, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(_HeadMLP(channels, channels, last) for _ in range(MASK_TOKENS))
        self.output_hypernetworks_mlps[1:].requires_grad_(False)
        self.iou_prediction_head = _HeadMLP(channels, IOU_HIDDEN, MASK_TOKENS).requires_grad_(False)
        self.txt_align_upscaled_embedding = nn.Linear(channels, last)

    def forward(
        self,
        embedding: torch.Tensor,
        *,
        image_code: torch.Tensor,
        prompts: torch.Tensor,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode prompts.

        Args:
            embedding: of the image, with that of no mask added, (B, C, d, h, w); with B of 1 for all prompts.
            image_code: code of places of its grid, (1, C, d, h, w).
            prompts: tokens, (B, N, C).
            text: embedding of a text, (B, C).

        Returns:
            Logits (B, 1, 4 d, 4 h, 4 w).
        """
        batch = max(len(embedding), len(prompts))
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(batch, -1, -1), prompts.expand(batch, -1, -1)], dim=1)
        image = embedding.expand(batch, -1, -1, -1, -1).flatten(2).transpose(1, 2)
        tokens, image = self.transformer(tokens, image, image_code.flatten(2).transpose(1, 2))
        image = image.transpose(1, 2).unflatten(2, embedding.shape[2:])
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])  # of the first mask token
        if text is not None:
            weights = weights + self.txt_align_upscaled_embedding(text)
        return torch.einsum("bc,bcdhw->bdhw", weights, self.output_upscaling(image)).unsqueeze(1)
