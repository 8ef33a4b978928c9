"""Convert a published Swin UNETR checkpoint to the plain state dict that the bundles load.

    python -m scripts.convert_weights model_final.pt models/model.pt

Weights published before MONAI 1.5 are marked with their patch merging, so that they load with
`--legacy_merging true` and with nothing else.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import SwinUNETR
from torch.overrides import TorchFunctionMode

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.models.conversion import check_target, exit_code, write_weights
from scripts.models.swin_unetr import is_marker, patch_merging
from scripts.models.weight_files import load_state_dict_file
from scripts.models.weights import check_state_dict

logger = logging.getLogger(__name__)

_EMBEDDING, _HEAD = "swinViT.patch_embed.proj.weight", "out.conv.conv.weight"
_STAGES = (1, 2, 3, 4)
_BIAS_TABLE = "swinViT.layers{}.0.blocks.0.attn.relative_position_bias_table"
# MONAI 0.8 gave every residual block these, used or not; later versions only where they are used.
_UNUSED_SHORTCUT = re.compile(r"\.layer\.(?:conv3|norm3)\.")


def convert(source: str | Path, target: str | Path, *, legacy_merging: bool) -> dict[str, Any]:
    """Convert a checkpoint, after checking that it fits the network inferred from its shapes.

    Args:
        source: published checkpoint, in any form that `load_state_dict_file` reads.
        target: file to write; an existing one is replaced.
        legacy_merging: whether it was trained with MONAI < 1.5.

    Returns:
        The arguments of the `SwinUNETR` that it fits.

    Raises:
        InputError: there is no such source, it cannot be read or is not a whole SwinUNETR, or the target is the source
            or cannot be written.
    """
    source, target = Path(source), Path(target)
    check_target(source, target)
    state = load_state_dict_file(source)
    arguments = network_arguments(state, source)
    for device in ("meta", "cpu"):  # first without memory: the file decides how large the network is
        network = _network(arguments, legacy_merging, source, device)
        own = network.state_dict()
        state = {key: value for key, value in state.items() if key in own or not _UNUSED_SHORTCUT.search(key)}
        state = {key: value for key, value in own.items() if is_marker(key)} | state
        check_state_dict(network, state, source)
    write_weights(state, target)
    return arguments


def network_arguments(state: Mapping[str, torch.Tensor], path: str | Path) -> dict[str, Any]:
    """Infer a SwinUNETR's arguments from the names and shapes of its weights.

    Args:
        state: names to tensors, as `load_state_dict_file` returns them.
        path: where they come from, for the message.

    Returns:
        Channels, patch and window size, depths and heads; the others are MONAI's defaults.

    Raises:
        InputError: the weights are not those of a whole SwinUNETR.
    """
    tables = [_BIAS_TABLE.format(stage) for stage in _STAGES]
    missing = [key for key in (_EMBEDDING, _HEAD, *tables) if key not in state]
    if missing:
        raise InputError(
            f"{path}: not a whole SwinUNETR, {missing[0]} is missing: an encoder's weights need no "
            "conversion, give them to the training as pretrained weights."
        )
    ndims = {_EMBEDDING: (4, 5), _HEAD: (4, 5), **dict.fromkeys(tables, (2,))}
    if wrong := [key for key in ndims if state[key].ndim not in ndims[key] or not state[key].numel()]:
        shape = tuple(state[wrong[0]].shape)
        raise InputError(f"{path}: not a SwinUNETR, {wrong[0]} is of shape {shape}: give a file of its weights.")
    depths = tuple(_depth(state, stage) for stage in _STAGES)
    if sum(depths) > len(state) / 10:  # a block has 14 tensors
        raise InputError(f"{path}: not a whole SwinUNETR, most tensors of its {sum(depths)} blocks are missing.")
    embedding, table = state[_EMBEDDING], state[tables[0]]
    spatial_dims = embedding.ndim - 2
    return {
        "in_channels": embedding.shape[1],
        "out_channels": state[_HEAD].shape[0],
        "feature_size": embedding.shape[0],
        "patch_size": embedding.shape[2],
        "depths": depths,
        "num_heads": tuple(state[key].shape[1] for key in tables),
        "window_size": (round(len(table) ** (1 / spatial_dims)) + 1) // 2,
        "spatial_dims": spatial_dims,
        "use_v2": any(key.startswith("swinViT.layers1c.") for key in state),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 where nothing was written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m scripts.convert_weights", description=__doc__)
    parser.add_argument("source", type=Path, help="published checkpoint, e.g. model_final.pt")
    parser.add_argument("target", type=Path, help="file to write, e.g. models/model.pt")
    parser.add_argument(
        "--legacy_merging",
        type=parse_flag,
        default=True,
        help="whether it was trained with MONAI < 1.5, as the published ones were (default: true)",
    )
    options = parser.parse_args(argv)

    def report() -> None:
        arguments = convert(options.source, options.target, legacy_merging=options.legacy_merging)
        logger.info("wrote %s, weights of SwinUNETR(%s)", options.target, _as_text(arguments))
        if options.legacy_merging:
            logger.info("use it with --legacy_merging true")

    return exit_code(report)


class _ValuesOnCpu(TorchFunctionMode):
    """Keep on the CPU what MONAI and the patch merging read values of while a network is made on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if func in (torch.linspace, torch.tensor) else {}
        return func(*args, **{**(kwargs or {}), **device})


def _network(arguments: Mapping[str, Any], legacy_merging: bool, path: Path, device: str) -> SwinUNETR:
    try:
        with torch.device(device), _ValuesOnCpu():
            return SwinUNETR(**arguments, downsample=patch_merging(legacy_merging))
    except (ValueError, ArithmeticError, RuntimeError) as error:  # of MONAI's rules and of torch's sizes
        why = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: its shapes are those of no SwinUNETR: {_as_text(arguments)} ({why}): give a file of its weights."
        ) from error


def _depth(state: Mapping[str, torch.Tensor], stage: int) -> int:
    blocks = (re.match(rf"swinViT\.layers{stage}\.0\.blocks\.(\d+)\.", key) for key in state)
    return len({block[1] for block in blocks if block})


def _as_text(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())
