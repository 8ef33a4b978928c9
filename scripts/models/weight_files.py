"""PyTorch checkpoints: written whole, read with `weights_only=True`, under the names that MONAI uses."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.common.errors import InputError
from scripts.common.files import atomic_path

# Published names to SwinUNETR's, one after the other.
_RENAMES = (
    # wrappers: (Distributed)DataParallel, torch.compile, and the CLIP-driven and SuPreM models' backbone
    (r"^(?:module\.|_orig_mod\.|backbone\.(?=(?:swinViT|swin_vit|encoder\d+|decoder\d+|out)\.))+", ""),
    (r"^swin_vit\.", "swinViT."),
    # the disruptive autoencoders' encoder, whose stages lie one list deeper
    (r"^encoder\.(?=patch_embed\.|layers[1-4]\.)", "swinViT."),
    (r"^(swinViT\.layers[1-4]\.0\.)0\.", r"\1"),
    # model_swinvit.pt: the bare encoder, with the linear layers' names of before MONAI 0.9
    (r"^(?=patch_embed\.|layers[1-4]c?\.0\.)", "swinViT."),
    (r"^(swinViT\..+\.mlp)\.fc([12])\.", r"\1.linear\2."),
)
_WRAPPERS = ("state_dict", "model", "network", "net")

# Trainers save their best accuracy as a NumPy number: numbers and their types are data, unlike other globals.
_NUMPY_NUMBER = np.float64(0).__reduce__()[0]
_SAFE_GLOBALS = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")),
    (_NUMPY_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMPY_NUMBER, "numpy._core.multiarray.scalar"),
]
# What torch.load raises on damaged files and on those of other kinds.
_DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, OSError)
_DAMAGED += (AttributeError, AssertionError, struct.error)


def load_state_dict_file(path: str | Path) -> dict[str, torch.Tensor]:
    """Read weights under SwinUNETR's names, without running pickled code.

    Unwraps `state_dict`, `model`, `network` and `net`, and undoes the names of published weights: `module.`
    prefixes, `swin_vit`, and MONAI's self-supervised encoders.

    Args:
        path: file written by `torch.save`.

    Returns:
        Names to tensors on the CPU; everything else in the file is left out.

    Raises:
        InputError: there is no such file, it is not a PyTorch checkpoint, holds pickled code or holds no tensors.

    Source:
        `SwinUNETR.load_from` and `filter_swinunetr` of monai/networks/nets/swin_unetr.py.
    """
    path = Path(path)
    content = _unwrap(read_file(path))
    state = {_published_to_monai(str(k)): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise InputError(f"{path}: holds no weights: give a file of torch.save(network.state_dict(), path).")
    return state


def read_file(path: Path) -> Any:
    """Read what `torch.save` wrote onto the CPU: tensors, plain values and NumPy numbers, never code.

    Raises:
        InputError: there is no such file, it is corrupted, not a PyTorch checkpoint, or holds pickled code.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file: give the path of the weights.")
    # Those allowed already must stay so: the context takes away all that it is given.
    numbers = [entry for entry in _SAFE_GLOBALS if entry not in torch.serialization.get_safe_globals()]
    with path.open("rb") as file, torch.serialization.safe_globals(numbers):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except _DAMAGED as error:
            raise InputError(f"{path}: {_explained(str(error))}") from error


def _explained(reason: str) -> str:
    if "TorchScript" in reason:
        return "is a TorchScript archive: give the file of weights, model.pt."
    refused = re.search(r"GLOBAL ([\w.<>]*\w) ", reason)  # plain text that starts with "c" is a GLOBAL too
    if refused:
        return (
            f"holds pickled code ({refused[1]}), refused because loading it could execute code: if you trust its "
            "source, save only its state dict and give that file."
        )
    return "not a PyTorch checkpoint, or corrupted: download or save it again."


def _unwrap(content: Any) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        return {}
    inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    return content if inner is None else _unwrap(inner)


def _published_to_monai(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def save(content: Any, path: Path) -> None:
    """Write `content` with `torch.save` under a temporary name, then rename it to `path`.

    The same content gives the same bytes: given a path, torch would write the temporary name into the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
