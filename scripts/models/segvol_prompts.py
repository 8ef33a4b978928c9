"""The prompt encoder of SegVol: points, boxes and texts become tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

NEGATIVE, POSITIVE, BOX_MIN, BOX_MAX = range(4)
"""Rows of `PromptEncoder.point_embeddings`."""
IGNORED = -1
"""Label of a point that fills up a list of points."""


class FourierCode(nn.Module):
    """Encode coordinates by sines and cosines of random frequencies.

    Shape:
        Coordinates (..., 3), within the image from 0 to 1, become (..., channels).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, channels // 2))

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        matrix = self.positional_encoding_gaussian_matrix
        products = (2 * coordinates.to(matrix) - 1).unsqueeze(-1) * matrix  # no matmul, which AMP computes in half
        angles = 2 * math.pi * products.sum(-2)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Turn prompts into tokens, and the grid of the image's embedding into a code of places.

    The coordinates of the two do not agree, as in the published network, which was trained so:

    - prompts: voxel (d, h, w) of an image (D, H, W) is encoded as `((d + .5) / H, (h + .5) / D, (w + .5) / W)`: the
      divisors of the first two are exchanged;
    - grid: the centre of cell (d, h, w), as shares of the image, in the order (h, d, w).

    Args:
        channels: of a token, an even number.
        image_size: (D, H, W) of the image, voxels.
        grid_size: of its embedding.

    Source:
        Kirillov et al. Segment Anything. ICCV 2023, whose coordinates (x, y) became (d, h, w) in SegVol. The parts
        that encode masks are in the weights and never used.
    """

    def __init__(self, channels: int, *, image_size: Sequence[int], grid_size: Sequence[int]) -> None:
        super().__init__()
        self.image_size, self.grid_size = tuple(image_size), tuple(grid_size)
        self.pe_layer = FourierCode(channels)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, stride=2),
            nn.GroupNorm(1, 4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, stride=2),
            nn.GroupNorm(1, 16),
            nn.GELU(),
            nn.Conv2d(16, channels, 1),
        ).requires_grad_(False)
        self.no_mask_embed = nn.Embedding(1, channels)

    def forward(
        self,
        *,
        points: torch.Tensor | None = None,
        point_labels: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the tokens of all prompts, (B, N, C), in the order points, box, text; N is 0 without a prompt.

        Args:
            points: (B, P, 3), voxel indices d, h, w.
            point_labels: (B, P), 1 positive, 0 negative, -1 ignored.
            boxes: (B, 6), voxel indices of the least and the largest voxel, which both belong to the box.
            text: (B, C).
        """
        tokens = []
        if points is not None:
            tokens.append(self._points(points, point_labels, fill=boxes is None))
        if boxes is not None:
            corners = self.pe_layer(self.normalized(boxes.unflatten(1, (2, 3))))
            tokens.append(corners + torch.cat([self.point_embeddings[i].weight for i in (BOX_MIN, BOX_MAX)]))
        if text is not None:
            tokens.append(text.unsqueeze(1))
        return torch.cat(tokens, dim=1) if tokens else self.no_mask_embed.weight.new_zeros(1, 0, self.channels)

    @property
    def channels(self) -> int:
        """Number of channels of a token."""
        return self.no_mask_embed.embedding_dim

    def normalized(self, voxels: torch.Tensor) -> torch.Tensor:
        """Return the coordinates of voxel indices (..., 3), as the class says."""
        depth, height, width = self.image_size
        return (voxels + 0.5) / voxels.new_tensor([height, depth, width], dtype=torch.float32)

    def grid_code(self) -> torch.Tensor:
        """Return the code of places of the embedding's grid, (1, C, d, h, w)."""
        like = self.pe_layer.positional_encoding_gaussian_matrix
        axes = [(torch.arange(n, device=like.device, dtype=torch.float32) + 0.5) / n for n in self.grid_size]
        d, h, w = torch.meshgrid(*axes, indexing="ij")
        return self.pe_layer(torch.stack([h, d, w], dim=-1)).movedim(-1, 0).unsqueeze(0)

    def no_mask(self) -> torch.Tensor:
        """Return what stands for the mask that is never given, (1, C, 1, 1, 1)."""
        return self.no_mask_embed.weight[..., None, None, None]

    def _points(self, points: torch.Tensor, labels: torch.Tensor, *, fill: bool) -> torch.Tensor:
        """Encode points; without a box, an ignored one is added."""
        coordinates = self.normalized(points)
        if fill:
            coordinates = torch.cat([coordinates, coordinates.new_zeros(len(points), 1, 3)], dim=1)
            labels = torch.cat([labels, labels.new_full((len(labels), 1), IGNORED)], dim=1)
        kinds = torch.cat([self.point_embeddings[i].weight for i in (NEGATIVE, POSITIVE)])
        tokens = self.pe_layer(coordinates) + kinds[labels.long().clamp(min=NEGATIVE)]
        return torch.where((labels == IGNORED).unsqueeze(-1), self.not_a_point_embed.weight, tokens)
