"""What published weights need: the patch merging of MONAI 0.9 to 1.4, and other numbers of input channels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch.nn.functional import pad

from scripts.settings import flag

# A bug, and the weights were trained with it: of a block's eight voxels two stand twice and two are missing.
LEGACY_SLICE_OFFSETS = (
    (0, 0, 0),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 0, 1),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 1),
)


class LegacyPatchMerging(PatchMergingV2):
    """Halve a feature map as MONAI < 1.5 did, for use as the `downsample` class of `SwinUNETR`.

    MONAI 1.5 mended the slices and changed no tensor's shape: old weights load there and give wrong results.
    The buffer `slice_offsets` marks the weights of this class: those of the other kind do not load into it.

    Args:
        dim: number of input channels.
        norm_layer: normalization layer.
        spatial_dims: 2 or 3; in 2-D all versions agree, so the class is its parent, without the marker.

    Shape:
        - Input: (B, D, H, W, C), or (B, H, W, C); odd sizes are padded by a zero at the end.
        - Output: (B, ceil(D / 2), ceil(H / 2), ceil(W / 2), 2 C).

    Source:
        `PatchMerging` of monai/networks/nets/swin_unetr.py in MONAI 1.4.0. We depart from it by the buffer.
    """

    def __init__(
        self, dim: int, norm_layer: type[torch.nn.LayerNorm] = torch.nn.LayerNorm, spatial_dims: int = 3
    ) -> None:
        super().__init__(dim, norm_layer, spatial_dims)
        if spatial_dims == 3:
            self.register_buffer("slice_offsets", torch.tensor(LEGACY_SLICE_OFFSETS, dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Merge the patches; see the class for shapes.

        Raises:
            ValueError: `x` has neither 4 nor 5 dimensions.
        """
        if x.ndim == 4:
            return super().forward(x)
        if x.ndim != 5:
            raise ValueError(
                f"patch merging got a tensor of shape {tuple(x.shape)}: pass (B, D, H, W, C) or (B, H, W, C)."
            )
        depth, height, width = x.shape[1:4]
        x = pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        # The constant, not the buffer: reading the buffer would wait for the GPU in every call.
        merged = torch.cat([x[:, d::2, h::2, w::2, :] for d, h, w in LEGACY_SLICE_OFFSETS], dim=-1)
        return self.reduction(self.norm(merged))


def patch_merging(legacy: bool | str) -> str | type[PatchMergingV2]:
    """Choose the `downsample` argument of `SwinUNETR`.

    Args:
        legacy: whether the weights were trained with MONAI < 1.5; also `"true"` or `"false"`, because
            `--legacy_merging true` on the command line of `monai.bundle` arrives as text.

    Returns:
        `LegacyPatchMerging`, or `"merging"`, the installed MONAI's own.

    Raises:
        ValueError: any other value.
    """
    return LegacyPatchMerging if flag(legacy, "legacy_merging") else "merging"


def is_marker(key: str) -> bool:
    """Tell whether a tensor of a state dict is `slice_offsets`, which marks legacy weights."""
    return key.rpartition(".")[2] == "slice_offsets"


def is_legacy(state: Iterable[str]) -> bool:
    """Tell whether a state dict, or its keys, bears the mark of weights trained with MONAI < 1.5."""
    return any(is_marker(key) for key in state)


def adapt_input_channels(weight: torch.Tensor, *, in_channels: int) -> torch.Tensor:
    """Fit a convolution of A channels to an image of B: the mean over A, B times, times A / B.

    The response to an image that shows the same in all channels stays what it was. To one channel (B = 1), it
    is the sum over the old ones; from one channel (A = 1), its weights B times, divided by B.

    Args:
        weight: the convolution's weights.
        in_channels: the new number B of input channels.

    Shape:
        - weight: (C_out, A, ...).
        - returns: (C_out, B, ...).
    """
    repeats = (1, in_channels, *(1 for _ in weight.shape[2:]))
    return weight.sum(dim=1, keepdim=True).div(in_channels).repeat(repeats)


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """Return the module inside DistributedDataParallel, or `network` itself."""
    return network.module if isinstance(network, torch.nn.parallel.DistributedDataParallel) else network
