"""Loading pretrained weights, as far as they fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.common.ranks import unwrapped
from scripts.models.swin_unetr import adapt_input_channels, is_legacy, is_marker, merging_problem
from scripts.models.weight_files import load_state_dict_file
from scripts.models.weights import StrictCheckpointLoader, check_values, describe_shapes

logger = logging.getLogger(__name__)

_IMAGE_WEIGHTS = (
    "swinViT.patch_embed.proj.weight",
    "encoder1.layer.conv1.conv.weight",
    "encoder1.layer.conv3.conv.weight",
)
_HEAD = "out.conv.conv."
_State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors in a partial load.

    Attributes:
        loaded: loaded as they are.
        adapted: loaded with their input channels adapted to the network's.
        fresh: tensors of the network that stay as initialized.
        unused: tensors of the file that are not loaded.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def load_pretrained(network: torch.nn.Module, path: str | Path) -> LoadReport:
    """Load whatever fits by name and shape, in place, and log it in one line.

    Convolutions of the input image are adapted to the network's number of channels. A head of another size is
    left as initialized. Published weights are not marked with their patch merging: it is assumed to be the network's.

    Args:
        network: any network, possibly wrapped for distributed training.
        path: file of pretrained weights, in any form that `load_state_dict_file` reads.

    Returns:
        What was loaded; the markers of the patch merging are not counted.

    Raises:
        InputError: there is no such file, it cannot be read, most tensors with a common name differ in shape, it is
            marked as trained with MONAI < 1.5 and the network is not, or values cannot be those of a trained network,
            see `scripts.models.weights.check_values`. The network is then unchanged.
    """
    network, state = unwrapped(network), load_state_dict_file(path)
    own = network.state_dict()
    if any(map(is_marker, state)) and (problem := merging_problem(is_legacy(own), is_legacy(state))):
        raise InputError(f"{path}: {problem}")
    whole = own
    given, own = ({k: v for k, v in tensors.items() if not is_marker(k)} for tensors in (state, own))
    loaded = {key: given[key] for key in own if key in given and given[key].shape == own[key].shape}
    adapted = _adapt(given, own)
    _require_fit(given, own, loaded | adapted, path)
    check_values(network, loaded | adapted, path)
    network.load_state_dict(whole | loaded | adapted)
    fresh, unused = (tuple(k for k in state if k not in loaded | adapted) for state in (own, given))
    report = LoadReport(tuple(loaded), tuple(adapted), fresh, unused)
    _log(report, path, note=_merging_note(network, state))
    return report


class PretrainedLoader(StrictCheckpointLoader):
    """Load pretrained weights with `load_pretrained` when a training starts, but not when it resumes.

    Leave it out in federated learning: it would replace the server's weights in the first round.
    """

    def __call__(self, engine: Engine) -> None:
        """Load, unless the trainer has finished an epoch."""
        if engine.state.epoch == 0:
            load_pretrained(self.network, self.path)


def _adapt(given: _State, own: _State) -> dict[str, torch.Tensor]:
    adapted = {}
    for key in _IMAGE_WEIGHTS:
        if key in given and key in own:
            (out, _, *kernel), shape = own[key].shape, given[key].shape
            if shape != own[key].shape and (*shape[:1], *shape[2:]) == (out, *kernel) and given[key].numel():
                weight = adapt_input_channels(given[key], in_channels=own[key].shape[1])
                adapted[key] = weight.to(given[key].dtype)  # integers stay so, to be refused
    return adapted


def _require_fit(given: _State, own: _State, taken: _State, path: str | Path) -> None:
    """Refuse a file of which only some buffers and biases fit, as with another feature size."""
    reshaped = [key for key in own if key in given and key not in taken and not key.startswith(_HEAD)]
    if len(taken) > len(reshaped):
        return
    first = f" (first: {describe_shapes(reshaped[0], given, own)})" if reshaped else ""
    raise InputError(
        f"{path}: pretrained weights of another network: {len(taken)} of {len(own)} tensors fit, "
        f"{len(reshaped)} are of another shape{first}; give the network the settings that the file was "
        "trained with."
    )


def _merging_note(network: torch.nn.Module, state: _State) -> str:
    """Describe which patch merging an unmarked file is assumed to have."""
    if any(map(is_marker, state)) or not any(".downsample.reduction." in key for key in state):
        return ""
    if is_legacy(network.state_dict()):
        return "; assumed to be trained with MONAI < 1.5"
    return "; assumed to be trained with MONAI >= 1.5 (if not, set legacy_merging to true)"


def _log(report: LoadReport, path: str | Path, *, note: str) -> None:
    total = len(report.loaded + report.adapted + report.fresh)
    level = logging.WARNING if len(report.fresh) > total / 2 else logging.INFO
    lists = ("adapted", report.adapted), ("new", report.fresh), ("unused in file", report.unused)
    rest = ", ".join(f"{name} {_few(names)}" for name, names in lists)
    logger.log(level, "%s: loaded %d of %d tensors, %s%s", path, len(report.loaded), total, rest, note)


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"[{', '.join(names[:3])}{more}]"
