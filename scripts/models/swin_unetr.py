"""The Swin UNETR of the bundles: both kinds of patch merging, and other numbers of input channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2
from torch.nn.functional import pad

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag

# Where the voxels of a block of eight lie that a patch merging puts side by side.
SLICE_OFFSETS = (
    (0, 0, 0),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 0),
    (1, 0, 1),
    (0, 1, 1),
    (1, 1, 1),
)
# A bug of MONAI < 1.5 that weights were trained with: two voxels are used twice, two not at all.
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


class _MarkedMerging(torch.nn.Module):
    """A patch merging whose buffer `slice_offsets` marks its kind, and which refuses weights of the other kind.

    No tensor's shape tells the kinds apart, so `load_state_dict(strict=False)` would load either, and functions that
    copy the tensors that both have, such as `monai.bundle.load`, would leave out a buffer that only one of them has.
    """

    offsets = SLICE_OFFSETS

    def __init__(
        self, dim: int, norm_layer: type[torch.nn.LayerNorm] = torch.nn.LayerNorm, spatial_dims: int = 3
    ) -> None:
        super().__init__(dim, norm_layer, spatial_dims)
        if spatial_dims == 3:
            self.register_buffer("slice_offsets", torch.tensor(self.offsets, dtype=torch.uint8))
            self.register_load_state_dict_pre_hook(_refuse_other_merging)

    def refuse_state(self, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
        """Refuse the state dict of a whole network before any of it is loaded.

        Raises:
            InputError: see `merging_problem`.
        """
        if hasattr(self, "slice_offsets") and (problem := merging_problem(_is_legacy(self), is_legacy(state))):
            raise InputError(f"{path}: {problem}")


def _refuse_other_merging(merging: torch.nn.Module, state: dict[str, torch.Tensor], prefix: str, *others: Any) -> None:
    """Add the problem to torch's list of errors, which is the last argument of a hook; see `_MarkedMerging`."""
    errors: list[str] = others[-1]
    marker = f"{prefix}slice_offsets"
    if f"{prefix}reduction.weight" not in state:  # such as a training state, which holds the weights deeper inside
        problem = "without those of the patch merging; give the file of all weights, model.pt."
    else:
        given = {marker: state[marker]} if marker in state else {}
        problem = merging_problem(_is_legacy(merging), is_legacy(given))
    if problem and f"weights {problem}" not in errors:
        errors.append(f"weights {problem}")
    state.setdefault(marker, merging.slice_offsets)


def _is_legacy(merging: torch.nn.Module) -> bool:
    return isinstance(merging, LegacyPatchMerging)


class CurrentPatchMerging(_MarkedMerging, PatchMerging):
    """MONAI's own patch merging since 1.5, which refuses legacy weights."""


class LegacyPatchMerging(_MarkedMerging, PatchMergingV2):
    """Halve a feature map as MONAI < 1.5 did, for use as the `downsample` class of `SwinUNETR`.

    MONAI 1.5 corrected the slices and changed no tensor's shape: old weights load there and give wrong results. The
    buffer `slice_offsets` marks the weights of this class; weights of the other kind do not load into it.

    Args:
        dim: number of input channels.
        norm_layer: normalization layer.
        spatial_dims: 2 or 3; in 2-D all versions agree, so the class is its parent, without the marker.

    Shape:
        - Input: (B, D, H, W, C), or (B, H, W, C); odd sizes are padded by a zero at the end.
        - Output: (B, ceil(D / 2), ceil(H / 2), ceil(W / 2), 2 C).

    Source:
        `PatchMerging` of monai/networks/nets/swin_unetr.py in MONAI 1.4.0. We depart from it by the buffer.

    >>> LegacyPatchMerging(dim=12)(torch.zeros(1, 8, 8, 7, 12)).shape
    torch.Size([1, 4, 4, 4, 24])
    """

    offsets = LEGACY_SLICE_OFFSETS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Merge the patches; see the class for shapes.

        Raises:
            InputError: `x` has neither 4 nor 5 dimensions.
        """
        if x.ndim == 4:
            return super().forward(x)
        if x.ndim != 5:
            raise InputError(
                f"patch merging got a tensor of shape {tuple(x.shape)}: pass (B, D, H, W, C) or (B, H, W, C)."
            )
        depth, height, width = x.shape[1:4]
        x = pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        # The constant, not the buffer: reading the buffer would wait for the GPU in every call.
        merged = torch.cat([x[:, d::2, h::2, w::2, :] for d, h, w in LEGACY_SLICE_OFFSETS], dim=-1)
        return self.reduction(self.norm(merged))


def patch_merging(legacy: bool | str) -> type[PatchMergingV2]:
    """Choose the `downsample` argument of `SwinUNETR`.

    Args:
        legacy: whether the weights were trained with MONAI < 1.5; also `"true"` or `"false"`, because
            `--legacy_merging true` on the command line of `monai.bundle` arrives as text.

    Returns:
        `LegacyPatchMerging` or `CurrentPatchMerging`.

    Raises:
        InputError: any other value.

    >>> from monai.networks.nets import SwinUNETR
    >>> network = SwinUNETR(1, 14, feature_size=12, downsample=patch_merging("true"))
    """
    return LegacyPatchMerging if parse_flag(legacy, "legacy_merging") else CurrentPatchMerging


def is_marker(key: str) -> bool:
    """Return whether a tensor of a state dict is `slice_offsets`, which marks the kind of patch merging."""
    return key.rpartition(".")[2] == "slice_offsets"


def is_legacy(state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a state dict is marked as trained with MONAI < 1.5."""
    return any(tensor.tolist() != list(map(list, SLICE_OFFSETS)) for key, tensor in state.items() if is_marker(key))


def merging_problem(network_is_legacy: bool, weights_are_legacy: bool) -> str:
    """Describe why weights do not fit the patch merging of a network; "" if they do."""
    if weights_are_legacy and not network_is_legacy:
        return "trained with the patch merging of MONAI < 1.5; set legacy_merging to true."
    if network_is_legacy and not weights_are_legacy:
        return (
            "not marked as trained with the patch merging of MONAI < 1.5; set legacy_merging to false or, if it was, "
            "convert the file first: python -m scripts.convert_weights SOURCE models/model.pt"
        )
    return ""


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
