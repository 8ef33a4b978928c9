"""PyTorch checkpoints: written whole, read with `weights_only=True`, under the names that MONAI uses."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

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
WRAPPERS = ("state_dict", "model", "network", "net")
_MAX_WRAPPERS = 10


class _NumpyType:
    """The type of a NumPy number in a file, by its name such as `f8`."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, _: Any) -> None: ...  # byte order and alignment; NumPy's own crashes on damaged ones


def _number(kind: Any, data: Any) -> float:
    """Return a NumPy number as one of Python."""
    if not isinstance(kind, _NumpyType) or kind.name not in ("f8", "f4", "f2", "i8", "i4", "b1"):
        raise ValueError("not a number")
    return np.frombuffer(data, dtype=kind.name, count=1)[0].item()


# Trainers save their best accuracy as a NumPy number, which is data, unlike other globals.
_SAFE_GLOBALS = [
    (_NumpyType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]
# What torch.load and zipfile raise on damaged files and on those of other kinds.
DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, OSError)
DAMAGED += (AttributeError, AssertionError, ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error)
_CHUNK_BYTES = 1 << 20
_IS_FOLDER = 0x10  # of MS-DOS

# What is often given in place of weights, by its first bytes.
_OTHER_KINDS = (
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file that it stands for: run git lfs pull."),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "is a web page: download the file itself."),
    (rb"(?s).{8}\{\"", "is a safetensors file: save what safetensors.torch.load_file reads from it with torch.save."),
    (rb"\Z", "is empty: download or save it again."),
)


def load_state_dict_file(path: str | Path) -> dict[str, torch.Tensor]:
    """Read weights under SwinUNETR's names, without running pickled code.

    Unwraps `state_dict`, `model`, `network` and `net`, and undoes the names of published weights: `module.`
    prefixes, `swin_vit`, and MONAI's self-supervised encoders.

    Args:
        path: file written by `torch.save`.

    Returns:
        Names to tensors on the CPU, dense and with all their values; everything else in the file is left out.

    Raises:
        InputError: there is no such file, it is not a PyTorch checkpoint or corrupted, holds pickled code, no tensors,
            tensors of another kind (sparse, quantized, on the meta device), or two for one name.

    Source:
        `SwinUNETR.load_from` and `filter_swinunetr` of monai/networks/nets/swin_unetr.py.
    """
    path, state = Path(path), {}
    for given, tensor in _unwrap(read_file(path)).items():
        if isinstance(tensor, torch.Tensor):
            name = _published_to_monai(given) if isinstance(given, str) else ""
            if problem := _tensor_problem(name, tensor, state):
                fix = "give a file of torch.save(network.state_dict(), path)"
                raise InputError(f"{path}: tensor {given!r:.200} {problem}: {fix}.")
            state[name] = tensor
    if not state:
        raise InputError(f"{path}: holds no weights: give a file of torch.save(network.state_dict(), path).")
    return state


def read_file(path: Path) -> Any:
    """Read what `torch.save` wrote onto the CPU: tensors, plain values and NumPy numbers, never code.

    Raises:
        InputError: there is no such file, it cannot be read, is corrupted, not a PyTorch checkpoint, or holds pickled
            code.
    """
    # Those allowed already must stay so: the context takes away all that it is given.
    numbers = [entry for entry in _SAFE_GLOBALS if entry not in torch.serialization.get_safe_globals()]
    start = None
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file: give the path of the weights.")
        with path.open("rb") as file, torch.serialization.safe_globals(numbers):
            start = file.read(100)
            check_archive(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"{path}: {_explained(error, start)}") from error


def check_archive(file: BinaryIO) -> None:
    """Check the sizes and checksums of a zip file, which `torch.load` does not; leave other files to it.

    Raises:
        zipfile.BadZipFile: an entry is damaged or there twice, or all are larger than the file; torch compresses none.
    """
    file.seek(0)
    if file.read(4) == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > file.seek(0, 2) or len(entries) > len(archive.NameToInfo):
                raise zipfile.BadZipFile("unpacks to more than its size, or an entry is there twice")
            if any(entry.external_attr & _IS_FOLDER for entry in entries):
                raise zipfile.BadZipFile("an entry is a folder, of which torch takes the memory as it is")
            for entry in entries:
                if entry.CRC:  # 0 where torch was told not to compute it
                    with archive.open(entry) as content:
                        while content.read(_CHUNK_BYTES):
                            pass
    file.seek(0)


def _explained(error: Exception, start: bytes | None) -> str:
    """Explain why a file could not be read.

    Args:
        error: of reading it.
        start: its first bytes; None if it could not be opened.
    """
    if isinstance(error, FileNotFoundError):
        return "no such file: give the path of the weights."
    if start is None:
        return f"cannot be read ({getattr(error, 'strerror', error)}): give the path of the weights."
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "needs more memory than there is, or is corrupted: download it again, or free memory."
    if "TorchScript" in str(error):
        return "is a TorchScript archive: give the file of weights, model.pt."
    if kind := next((kind for pattern, kind in _OTHER_KINDS if re.match(pattern, start)), None):
        return kind
    refused = re.search(r"GLOBAL ([\w.<>]*\w) ", str(error))  # plain text that starts with "c" is a GLOBAL too
    if refused:
        return (
            f"holds pickled code ({refused[1]}), refused because loading it could execute code: if you trust its "
            "source, save only its state dict and give that file."
        )
    return "not a PyTorch checkpoint, or corrupted: download or save it again."


def _tensor_problem(name: str, tensor: torch.Tensor, others: Mapping[str, torch.Tensor]) -> str:
    """Describe why a tensor of a file cannot be a weight of that name; "" if it can."""
    if not name or not name.isprintable():
        return "has a name that no network gives"
    if name in others:
        return f"is the second one for {name}"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        return "is sparse, quantized, nested or without values"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"repeats few values in a shape of {tuple(tensor.shape)}"
    return ""


def _unwrap(content: Any) -> Mapping[Any, Any]:
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(content, Mapping):
            return {}
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return {}


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
