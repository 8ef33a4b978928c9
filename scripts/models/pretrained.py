"""Loading pretrained weights, as far as they fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.common.names import listed, printable
from scripts.common.organs import organ_name
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
        classes: names of the network's classes whose head was loaded by name.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    classes: tuple[str, ...] = ()


def load_pretrained(
    network: torch.nn.Module,
    path: str | Path,
    *,
    class_names: Sequence[str] = (),
    file_classes: Sequence[str] = (),
) -> LoadReport:
    """Load whatever fits by name and shape, in place, and log it in one line.

    Convolutions of the input image are adapted to the network's number of channels. Where the names of the classes are
    known on both sides, the head of each class that both have is loaded, whatever its number, and that of the others
    is left as initialized; else a head of another size is left as initialized. Published weights are not marked with
    their patch merging: it is assumed to be the network's.

    Args:
        network: any network, possibly wrapped for distributed training.
        path: file of pretrained weights, in any form that `load_state_dict_file` reads.
        class_names: of the network's head, in order; compared by `scripts.common.organs.organ_name`.
        file_classes: of the file's head, in order.

    Returns:
        What was loaded; the markers of the patch merging are not counted.

    Raises:
        InputError: there is no such file, it cannot be read, most tensors with a common name differ in shape, it is
            marked as trained with MONAI < 1.5 and the network is not, or values cannot be those of a trained network,
            see `scripts.models.weights.check_values`, or the network refuses them as there. It is then unchanged.
    """
    network, state = unwrapped(network), load_state_dict_file(path)
    if hasattr(network, "refuse_state"):
        network.refuse_state(state, path)
    own = network.state_dict()
    if any(map(is_marker, state)) and (problem := merging_problem(is_legacy(own), is_legacy(state))):
        raise InputError(f"{path}: {problem}")
    whole = own
    given, own = ({k: v for k, v in tensors.items() if not is_marker(k)} for tensors in (state, own))
    loaded = {key: given[key] for key in own if key in given and given[key].shape == own[key].shape}
    adapted = _adapt(given, own)
    shared = _shared_classes(given, own, class_names, file_classes)
    if shared is not None:
        loaded = {key: tensor for key, tensor in loaded.items() if not key.startswith(_HEAD)}
        adapted |= _adapted_head(given, own, shared)
    _require_fit(given, own, loaded | adapted, path)
    check_values(network, loaded | adapted, path)
    network.load_state_dict(whole | loaded | adapted)
    fresh, unused = (tuple(k for k in state if k not in loaded | adapted) for state in (own, given))
    kept = tuple(class_names[index] for index in shared or {})
    report = LoadReport(tuple(loaded), tuple(adapted), fresh, unused, kept)
    heads = f"; heads of {len(kept)} of {len(class_names)} classes: {listed(kept)}" if kept else ""
    _log(report, path, note=heads + _merging_note(network, state))
    return report


class PretrainedLoader(StrictCheckpointLoader):
    """Load pretrained weights with `load_pretrained` when a training starts, but not when it resumes.

    Leave it out in federated learning: it would replace the server's weights in the first round.

    Args:
        network: the network of the engine, possibly wrapped for distributed training.
        path: file of its weights.
        channel_def: the network's classes, as in its bundle's metadata.
        classes_file: see `read_file_classes`.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        path: str | Path,
        *,
        channel_def: Mapping[str, str] | None = None,
        classes_file: str | Path = "",
    ) -> None:
        super().__init__(network, path)
        self.class_names, self.classes_file = list((channel_def or {}).values()), classes_file

    def __call__(self, engine: Engine) -> None:
        """Load, unless the trainer has finished an epoch."""
        if engine.state.epoch == 0:
            file_classes = read_file_classes(self.path, self.classes_file)
            load_pretrained(self.network, self.path, class_names=self.class_names, file_classes=file_classes)


def read_file_classes(path: Path, classes_file: str | Path = "") -> list[str]:
    """Return the names of the classes of a file of weights, in the order of its head; none if nobody knows them.

    Files of weights hold tensors alone, so that every program can load them strictly. The names are those of the
    metadata of the bundle that they lie in.

    Args:
        path: file of the weights.
        classes_file: `metadata.json` of the bundle that wrote it, or JSON such as `{"0": "background", "1": "spleen"}`;
            "": `configs/metadata.json` of the bundle in whose folder `models` the file lies, if it does.

    Raises:
        InputError: `classes_file` cannot be read or holds no names.
    """
    where = Path(classes_file) if classes_file else path.absolute().parent.parent / "configs" / "metadata.json"
    if not classes_file and (path.absolute().parent.name != "models" or not where.is_file()):
        return []
    try:
        content = json.loads(where.read_bytes())
        names = (
            content["network_data_format"]["outputs"]["pred"]["channel_def"] if "monai_version" in content else content
        )
        ordered = [names[str(index)] for index in range(len(names))]
        if not ordered or not all(isinstance(name, str) for name in ordered):
            raise TypeError("not text")
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        fix = 'give metadata.json of a bundle, or JSON such as {"0": "background", "1": "spleen"}'
        raise InputError(f"{printable(where)}: holds no names of classes ({error}); {fix}.") from error
    return ordered


def _shared_classes(
    given: _State, own: _State, class_names: Sequence[str], file_classes: Sequence[str]
) -> dict[int, int] | None:
    """Return the network's number of each class that both know and the file's; None if the names are not known.

    Names that do not fit the number of channels are not of this head: of regions, the metadata name other things.
    """
    heads = [state.get(f"{_HEAD}bias") for state in (own, given)]
    named = (class_names, file_classes)
    if any(head is None or len(head) != len(names) for head, names in zip(heads, named, strict=True)):
        return None
    numbers = {organ_name(name): index for index, name in reversed(list(enumerate(file_classes)))}
    wanted = {index: organ_name(name) for index, name in enumerate(class_names)}
    return {index: numbers[name] for index, name in wanted.items() if name in numbers}


def _adapted_head(given: _State, own: _State, shared: Mapping[int, int]) -> dict[str, torch.Tensor]:
    """Return the network's head with that of the shared classes from the file; nothing if the features differ."""
    keys = [key for key in own if key.startswith(_HEAD) and key in given]
    if not shared or any(own[key].shape[1:] != given[key].shape[1:] for key in keys):
        return {}
    heads = {key: own[key].cpu().to(given[key].dtype, copy=True) for key in keys}
    for key, head in heads.items():
        head[list(shared)] = given[key][list(shared.values())]
    return heads


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
