"""Weights from files into networks: strictly for inference, as far as they fit for fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from scripts.networks import adapt_input_channels, is_legacy, is_marker, unwrapped
from scripts.weight_files import load_state_dict_file

logger = logging.getLogger(__name__)

_State = Mapping[str, torch.Tensor]

_IMAGE_WEIGHTS = (
    "swinViT.patch_embed.proj.weight",
    "encoder1.layer.conv1.conv.weight",
    "encoder1.layer.conv3.conv.weight",
)
_HEAD = "out.conv.conv."


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors that a partial load took or left.

    Attributes:
        loaded: taken as they are.
        adapted: taken with their input channels fitted to the network's.
        fresh: the network's, left as they were.
        unused: the file's, left out.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def load_weights(network: torch.nn.Module, path: str | Path) -> None:
    """Load weights that fit exactly, in place.

    Args:
        network: any network, possibly wrapped for distributed training.
        path: file of its weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or any name or shape differs; the network is then unchanged.
    """
    network, state = unwrapped(network), load_state_dict_file(path)
    check_state_dict(network, state, path)
    network.load_state_dict(state)


def check_state_dict(network: torch.nn.Module, state: _State, path: str | Path) -> None:
    """Hold weights against the network that is to take all of them.

    Args:
        network: the network, not wrapped.
        state: names to tensors, as `load_state_dict_file` returns them.
        path: where they come from, for the message.

    Raises:
        ValueError: any name or shape differs, or the weights were trained with another patch merging.
    """
    if hasattr(network, "refuse_state"):  # some networks know better than their tensors' shapes what is not theirs
        network.refuse_state(state, path)
    _require_same_tensors(_without_markers(state), _without_markers(network.state_dict()), path)
    _refuse_legacy_file(network, state, path)
    if is_legacy(network.state_dict()) and not is_legacy(state):
        raise ValueError(
            f"{path}: not marked as trained with the patch merging of MONAI < 1.5: leave out "
            "--legacy_merging true; or, if it was, convert it first: "
            f"python -m scripts.convert_weights {path} models/model.pt"
        )


def load_pretrained(network: torch.nn.Module, path: str | Path) -> LoadReport:
    """Load whatever fits by name and shape, in place, and log it in one line.

    Convolutions of the input image are adapted to the network's number of channels. A head of another size is
    left as initialised. Published weights bear no mark of their patch merging: it is taken for the network's.

    Args:
        network: any network, possibly wrapped for distributed training.
        path: file of pretrained weights, in any form that `load_state_dict_file` reads.

    Returns:
        What was loaded and what not; the marks of the patch merging are not counted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, most tensors that it shares by name differ in shape, or it is marked as
            trained with MONAI < 1.5 and the network is not. The network is then unchanged.
    """
    network, state = unwrapped(network), load_state_dict_file(path)
    _refuse_legacy_file(network, state, path)
    given, own = _without_markers(state), _without_markers(network.state_dict())
    loaded = {key: given[key] for key in own if key in given and given[key].shape == own[key].shape}
    adapted = _adapt(given, own)
    _require_fit(given, own, loaded | adapted, path)
    network.load_state_dict(loaded | adapted, strict=False)
    fresh, unused = (tuple(k for k in state if k not in loaded | adapted) for state in (own, given))
    report = LoadReport(tuple(loaded), tuple(adapted), fresh, unused)
    _log(report, path, note=_merging_note(network, state))
    return report


class StrictCheckpointLoader:
    """Load weights that must fit exactly when an engine starts, as `load_weights` does.

    MONAI FL finds loaders by the word CheckpointLoader in their names and leaves them out, as the weights that
    it evaluates are the server's.

    Args:
        network: the network of the engine, possibly wrapped for distributed training.
        path: file of its weights.
    """

    def __init__(self, network: torch.nn.Module, path: str | Path) -> None:
        self.network, self.path = network, Path(path)

    def attach(self, engine: Engine) -> None:
        """Attach to the engine's start; in training, after what resumes the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Engine) -> None:
        """Load."""
        load_weights(self.network, self.path)
        logger.info("%s: loaded", self.path)


class PretrainedLoader(StrictCheckpointLoader):
    """Load pretrained weights when a training starts anew, as `load_pretrained` does; not when it resumes.

    Leave it out in federated learning: it would replace the server's weights in the first round.
    """

    def __call__(self, engine: Engine) -> None:
        """Load, unless the trainer has finished an epoch."""
        if engine.state.epoch == 0:
            load_pretrained(self.network, self.path)


def _without_markers(state: _State) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not is_marker(key)}


def _require_same_tensors(given: _State, own: _State, path: str | Path) -> None:
    missing = [key for key in own if key not in given]
    unexpected = [key for key in given if key not in own]
    reshaped = [key for key in own if key in given and given[key].shape != own[key].shape]
    if reshaped:
        first = _shapes(reshaped[0], given, own)
    elif missing or unexpected:
        first = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is unexpected"
    else:
        return
    raise ValueError(
        f"{path}: weights of another network: {len(missing)} of {len(own)} tensors missing, "
        f"{len(unexpected)} unexpected, {len(reshaped)} of another shape (first: {first}); give the network "
        "the settings that the file was trained with, or use the file as pretrained weights."
    )


def _refuse_legacy_file(network: torch.nn.Module, state: Iterable[str], path: str | Path) -> None:
    if is_legacy(state) and not is_legacy(network.state_dict()):
        raise ValueError(f"{path}: trained with the patch merging of MONAI < 1.5: add --legacy_merging true.")


def _shapes(key: str, given: _State, own: _State) -> str:
    return f"{key}: file {tuple(given[key].shape)}, network {tuple(own[key].shape)}"


def _adapt(given: _State, own: _State) -> dict[str, torch.Tensor]:
    adapted = {}
    for key in _IMAGE_WEIGHTS:
        if key in given and key in own and given[key].ndim == own[key].ndim:
            weight = adapt_input_channels(given[key], in_channels=own[key].shape[1])
            if given[key].shape != own[key].shape == weight.shape:
                adapted[key] = weight
    return adapted


def _require_fit(given: _State, own: _State, taken: _State, path: str | Path) -> None:
    """Refuse a file that fits by chance: with another feature size, some buffers and biases still do."""
    reshaped = [key for key in own if key in given and key not in taken and not key.startswith(_HEAD)]
    if len(taken) > len(reshaped):
        return
    first = f" (first: {_shapes(reshaped[0], given, own)})" if reshaped else ""
    raise ValueError(
        f"{path}: pretrained weights of another network: {len(taken)} of {len(own)} tensors fit, "
        f"{len(reshaped)} are of another shape{first}; give the network the settings that the file was "
        "trained with."
    )


def _merging_note(network: torch.nn.Module, state: Iterable[str]) -> str:
    """Say what an unmarked file's patch merging was taken for."""
    if is_legacy(state) or not any(".downsample.reduction." in key for key in state):
        return ""
    if is_legacy(network.state_dict()):
        return "; taken as trained with MONAI < 1.5"
    return "; taken as trained with MONAI >= 1.5 (if older: --legacy_merging true)"


def _log(report: LoadReport, path: str | Path, *, note: str) -> None:
    total = len(report.loaded + report.adapted + report.fresh)
    level = logging.WARNING if len(report.fresh) > total / 2 else logging.INFO
    lists = ("adapted", report.adapted), ("new", report.fresh), ("unused in file", report.unused)
    rest = ", ".join(f"{name} {_few(names)}" for name, names in lists)
    logger.log(level, "%s: loaded %d of %d tensors, %s%s", path, len(report.loaded), total, rest, note)


def _few(names: tuple[str, ...], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"[{', '.join(names[:shown])}{more}]"
