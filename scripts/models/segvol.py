"""SegVol: a network that segments what points, a box or a text mean in a CT volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ViT
from torch import nn
from torch.nn.functional import interpolate

from scripts.common.errors import InputError
from scripts.models.clip_text import CLIPText, TowerMark
from scripts.models.segvol_decoder import DOWNSAMPLING, UPSCALING, MaskDecoder
from scripts.models.segvol_prompts import PromptEncoder

TOWER = "text_encoder.clip_text_model."
"""Begins the names of the text tower's weights."""
TOWER_MARK = f"{TOWER}text_model.embeddings.position_embedding.weight"
"""Weights of the text tower by which it is known; a network without the tower has these of it."""


class _TextEncoder(nn.Module):
    """CLIP's text tower, which is never trained, and a linear layer to the channels of the image."""

    def __init__(self, clip: CLIPText | TowerMark, width: int, channels: int) -> None:
        super().__init__()
        self.clip_text_model = clip.requires_grad_(False)
        self.dim_align = nn.Linear(width, channels)


class SegVol(nn.Module):
    """Segment what prompts mean in a volume of a fixed size: points, a box, a text, or several of them.

    The embedding of the image does not depend on the prompts: compute it once with `encode_image`, then `decode` any
    number of prompts. The sizes by default are those of the published weights, of 180,890,064 parameters, meant for CT
    of (z, y, x) scaled to 0..1.

    Args:
        spatial_size: (D, H, W) of the volume, voxels; weights fit no other size.
        patch_size: of a token of the image, which must divide the volume.
        hidden_size: channels of tokens: a multiple of 8, of `num_heads` and of twice `decoder_heads`.
        mlp_dim: hidden features of the MLPs of the image encoder.
        num_layers: transformer blocks of the image encoder.
        num_heads: of their attention.
        decoder_layers: layers of the decoder's two-way transformer.
        decoder_heads: of its attention.
        decoder_mlp_dim: hidden features of its MLPs.
        text_width: features of a token of a text, a multiple of `text_heads`.
        text_layers: transformer blocks of the text tower.
        text_heads: of their attention.
        text_mlp_dim: hidden features of its MLPs.
        text_vocabulary: number of tokens of texts.
        text_context: number of tokens of the longest text.
        text_tower: make the text tower, of 63 million parameters. Without it, texts need stored features, see
            `scripts.models.text_features`, and weights may have the tower or not.

    Shape:
        - image: (B, 1, D, H, W), in 0..1.
        - points: (B, N, 3), voxel indices d, h, w; point_labels: (B, N), 1 positive, 0 negative, -1 ignored.
        - boxes: (B, 6), voxel indices dmin, hmin, wmin, dmax, hmax, wmax; the largest belong to the box.
        - text: (B, hidden_size), see `encode_text`.
        - Output: logits (B, 1, D, H, W).

    Raises:
        InputError: sizes do not fit each other, or an image or prompt is of another shape.

    Source:
        Du et al. SegVol: Universal and Interactive Volumetric Medical Image Segmentation. NeurIPS 2024
        (arXiv:2311.13385). Parts of the published weights that no output depends on are never computed and need no
        gradient: masks as prompts, the second to fourth mask and the estimate of the overlap.

    >>> sizes = {"hidden_size": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2, "decoder_heads": 2}
    >>> texts = {"text_width": 8, "text_layers": 1, "text_heads": 2, "text_mlp_dim": 8, "text_vocabulary": 10}
    >>> network = SegVol(spatial_size=[16, 32, 32], patch_size=[4, 8, 8], **sizes, **texts)
    >>> network(torch.rand(1, 1, 16, 32, 32), boxes=torch.tensor([[2, 3, 4, 10, 20, 30]])).shape
    torch.Size([1, 1, 16, 32, 32])
    """

    def __init__(
        self,
        *,
        spatial_size: Sequence[int] = (32, 256, 256),
        patch_size: Sequence[int] = (4, 16, 16),
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        decoder_layers: int = 2,
        decoder_heads: int = 8,
        decoder_mlp_dim: int = 2048,
        text_width: int = 512,
        text_layers: int = 12,
        text_heads: int = 8,
        text_mlp_dim: int = 2048,
        text_vocabulary: int = 49408,
        text_context: int = 77,
        text_tower: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(spatial_size, patch_size, hidden_size, num_heads, decoder_heads)
        self.spatial_size = tuple(spatial_size)
        grid_size = tuple(n // p for n, p in zip(spatial_size, patch_size, strict=True))
        encoder = {"hidden_size": hidden_size, "mlp_dim": mlp_dim, "num_layers": num_layers, "num_heads": num_heads}
        self.image_encoder = image_encoder(spatial_size, patch_size, **encoder)
        decoder = {"layers": decoder_layers, "heads": decoder_heads, "mlp_dim": decoder_mlp_dim}
        self.mask_decoder = MaskDecoder(hidden_size, grid_size=grid_size, **decoder)
        self.prompt_encoder = PromptEncoder(hidden_size, image_size=spatial_size, grid_size=grid_size)
        texts = {"width": text_width, "context": text_context}
        tower = {"layers": text_layers, "heads": text_heads, "mlp_dim": text_mlp_dim, "vocabulary": text_vocabulary}
        clip = CLIPText(**texts, **tower) if text_tower else TowerMark(**texts)
        self.text_encoder, self.has_text_tower = _TextEncoder(clip, text_width, hidden_size), text_tower
        self.register_load_state_dict_pre_hook(_leave_tower_out)

    def used_state(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return weights without those of the text tower, if the network was made without it."""
        unused = () if self.has_text_tower else (TOWER,)
        return {key: value for key, value in state.items() if key == TOWER_MARK or not key.startswith(unused)}

    def refuse_state(self, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
        """Refuse weights that were written without the text tower, if the network has it.

        Raises:
            InputError: they were.
        """
        if self.has_text_tower and TOWER_MARK in state and sum(key.startswith(TOWER) for key in state) == 1:
            raise InputError(
                f"{path}: weights without the text tower: to segment, give text_features, the file that was written "
                "with them; to train, the whole weights."
            )

    def forward(
        self,
        image: torch.Tensor,
        points: torch.Tensor | None = None,
        point_labels: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of prompts; see the class for shapes."""
        prompts = {"points": points, "point_labels": point_labels, "boxes": boxes, "text": text}
        return self.decode(self.encode_image(image), **prompts)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Return the embedding of a volume, (B, C, d, h, w)."""
        if image.ndim != 5 or image.shape[1:] != (1, *self.spatial_size):
            depth, height, width = self.spatial_size
            raise InputError(f"the image has shape {tuple(image.shape)}: give (B, 1, {depth}, {height}, {width}).")
        tokens, _ = self.image_encoder(image)
        return tokens.transpose(1, 2).unflatten(2, self.prompt_encoder.grid_size)

    def text_features(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return what the frozen text tower makes of tokens (B, L): (B, text_width)."""
        return self.text_encoder.clip_text_model(token_ids)

    def align_text(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of texts, (B, C), given what `text_features` returned."""
        return self.text_encoder.dim_align(features)

    def encode_text(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of texts, (B, C), of tokens (B, L), int64; see `scripts.models.clip_tokens`."""
        return self.align_text(self.text_features(token_ids))

    def decode(
        self,
        embedding: torch.Tensor,
        *,
        points: torch.Tensor | None = None,
        point_labels: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of prompts, given the embedding of the image, or a single one for all prompts."""
        given = {"points": points, "point_labels": point_labels, "boxes": boxes, "text": text}
        _check_prompts(given, self.prompt_encoder.channels)
        logits = self.mask_decoder(
            embedding + self.prompt_encoder.no_mask(),
            image_code=self.prompt_encoder.grid_code(),
            prompts=self.prompt_encoder(**given),
            text=text,
        )
        return interpolate(logits, size=self.spatial_size, mode="trilinear", align_corners=False)


def _leave_tower_out(network: SegVol, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take what the network was made without out of a state dict that it is about to load, also inside of another."""
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    for key in own.keys() - network.used_state(own).keys():
        del state[f"{prefix}{key}"]


def image_encoder(spatial_size: Sequence[int], patch_size: Sequence[int], **sizes: int) -> ViT:
    """Make the image encoder: MONAI's ViT under the names of the published weights.

    Args:
        spatial_size: (D, H, W) of the image, voxels.
        patch_size: of a token.
        sizes: `hidden_size`, `mlp_dim`, `num_layers` and `num_heads`.
    """
    vit = ViT(in_channels=1, img_size=spatial_size, patch_size=patch_size, proj_type="perceptron", **sizes)
    for block in vit.blocks:
        block.norm_cross_attn = nn.Identity()  # unused; no published weights have it
        block.attn.use_flash_attention = True
    return vit


def _check_sizes(
    spatial_size: Sequence[int], patch_size: Sequence[int], hidden_size: int, num_heads: int, decoder_heads: int
) -> None:
    if not len(spatial_size) == len(patch_size) == 3 or any(
        n < 1 or n % p for n, p in zip(spatial_size, patch_size, strict=True)
    ):
        sizes = f"spatial_size is {list(spatial_size)} and patch_size {list(patch_size)}"
        raise InputError(f"{sizes}: give three numbers each, of which the second divide the first.")
    divisors = (UPSCALING * 2, num_heads, decoder_heads * DOWNSAMPLING)
    if hidden_size < 1 or any(hidden_size % divisor for divisor in divisors):
        raise InputError(f"hidden_size is {hidden_size}: give a multiple of {', '.join(map(str, divisors))}.")


def _check_prompts(given: dict[str, torch.Tensor | None], channels: int) -> None:
    points, labels = given["points"], given["point_labels"]
    if (points is None) != (labels is None):
        raise InputError("points and point_labels: give both or none.")
    wanted = {"points": (3, 3), "point_labels": (2, None), "boxes": (2, 6), "text": (2, channels)}
    for name, (ndim, last) in wanted.items():
        tensor = given[name]
        if tensor is not None and (tensor.ndim != ndim or last not in (None, tensor.shape[-1])):
            shape = ", ".join(["B", *["N"] * (ndim - 2), str(last or "N")])
            raise InputError(f"{name} has shape {tuple(tensor.shape)}: give ({shape}).")
    if points is not None and points.shape[:2] != labels.shape:
        raise InputError(f"{points.shape[1]} points have {labels.shape[-1]} labels: give one each.")
