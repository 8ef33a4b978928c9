"""Loading weights that must fit exactly."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.common.ranks import unwrapped
from scripts.models.weight_files import load_state_dict_file

logger = logging.getLogger(__name__)

_State = Mapping[str, torch.Tensor]
_MARKER = "slice_offsets"  # of a Swin UNETR's patch merging, which itself refuses weights that lack it
_CONSTANTS = ("relative_position_index", _MARKER)  # computed, not trained


def load_weights(network: torch.nn.Module, path: str | Path) -> None:
    """Load weights that fit exactly, in place.

    A network with a method `check_weights_file(path)` holds its weights already and only checks where they are from.
    One with a method `used_state(state)` chooses those that it loads.

    Args:
        network: any network, possibly wrapped for distributed training.
        path: file of its weights.

    Raises:
        InputError: there is no such file, it cannot be read, a name or shape differs, or values cannot be those of a
            trained network; the network is then unchanged.

    >>> import tempfile
    >>> trained, network = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> path = Path(tempfile.mkdtemp(), "model.pt")
    >>> torch.save(trained.state_dict(), path)
    >>> load_weights(network, path)
    >>> torch.equal(network.weight, trained.weight)
    True
    """
    network = unwrapped(network)
    if hasattr(network, "check_weights_file"):
        return network.check_weights_file(Path(path))
    state = load_state_dict_file(path)
    state = network.used_state(state) if hasattr(network, "used_state") else state
    check_state_dict(network, state, path)
    network.load_state_dict(state)
    return None


def check_state_dict(network: torch.nn.Module, state: _State, path: str | Path) -> None:
    """Check that weights fit a network exactly.

    Modules with a method `refuse_state(state, path)` check first what shapes do not tell.

    Args:
        network: the network, not wrapped; on the meta device, the values of constants are not compared.
        state: names to tensors, as `load_state_dict_file` returns them.
        path: where they come from, for the message.

    Raises:
        InputError: any name or shape differs, a module refuses them, or as `check_values`.
    """
    for module in network.modules():
        if hasattr(module, "refuse_state"):
            module.refuse_state(state, path)
    whole = network.state_dict()
    own = {key: tensor for key, tensor in whole.items() if not key.endswith(_MARKER)}
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in whole]
    reshaped = [key for key in own if key in state and state[key].shape != own[key].shape]
    if not (missing or unexpected or reshaped):
        return check_values(network, state, path)
    if reshaped:
        first = describe_shapes(reshaped[0], state, own)
    else:
        first = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is unexpected"
    raise InputError(
        f"{path}: weights of another network: {len(missing)} of {len(own)} tensors missing, "
        f"{len(unexpected)} unexpected, {len(reshaped)} of another shape (first: {first}); give the network "
        "the settings that the file was trained with, or use the file as pretrained weights."
    )


def check_values(network: torch.nn.Module, state: _State, path: str | Path) -> None:
    """Refuse tensors that `value_problems` finds.

    Raises:
        InputError: there are any.
    """
    if problems := value_problems(network, state):
        more = f" (and {len(problems) - 1} more tensors)" if len(problems) > 1 else ""
        raise InputError(f"{path}: {problems[0]}{more}: give other weights, or download or save them again.")


def value_problems(network: torch.nn.Module, state: _State) -> list[str]:
    """Describe which tensors are not of the network's kinds, or hold values that a trained network cannot have.

    Floating-point weights of any precision fit: loading casts them to the network's. Constants such as
    `relative_position_index` must be those that the network computes. The buffers of a module with a method
    `refuse_state` must be of its precision but may be infinite, as thresholds of the label filter are: the method
    judges their values.

    Args:
        network: the network, not wrapped.
        state: names to tensors of the network's shapes.
    """
    own = network.state_dict()
    judged = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in network.named_modules()
        if hasattr(module, "refuse_state")
        for name, _ in module.named_buffers(recurse=False)
    }
    found = {key: _value_problem(key, tensor, own[key], judged) for key, tensor in state.items()}
    return [f"{key} {problem}" for key, problem in found.items() if problem]


def _value_problem(key: str, given: torch.Tensor, own: torch.Tensor, judged: Collection[str]) -> str:
    casts = given.is_floating_point() and own.is_floating_point() and key not in judged
    if given.dtype != own.dtype and not casts:
        return f"is of {given.dtype}, the network's of {own.dtype}"
    if key.rpartition(".")[2] in _CONSTANTS and not own.is_meta and not torch.equal(given, own.cpu()):
        return "has other values than the network computes"
    values = given.to(own.dtype)
    if key in judged or not values.numel() or torch.isfinite(torch.stack(values.aminmax())).all():
        return ""
    return f"holds {int((~torch.isfinite(values)).sum())} values that are not finite"


def describe_shapes(key: str, given: _State, own: _State) -> str:
    """Describe how the shape of a tensor differs between a file and a network."""
    return f"{key}: file {tuple(given[key].shape)}, network {tuple(own[key].shape)}"


class StrictCheckpointLoader:
    """Load weights that must fit exactly when an engine starts, as `load_weights` does.

    MONAI FL finds loaders by the word CheckpointLoader in their names and leaves them out, because it evaluates the
    server's weights.

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
        logger.info("loaded %s", self.path)
