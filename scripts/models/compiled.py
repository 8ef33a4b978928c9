"""A network compiled by OpenVINO for the CPU, in a file that `python -m scripts.export_weights` writes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from monai.utils import convert_to_tensor

from scripts.common.errors import InputError
from scripts.common.files import file_sha256
from scripts.models.weight_files import read_file, save

SUFFIX = ".ov"
PRECISIONS = ("f32", "bf16")
Precision = Literal["f32", "bf16"]
_CONTENT = {"xml": torch.Tensor, "values": torch.Tensor, "window": list, "weights_sha256": str}
_EXPORT = "python -m scripts.export_weights configs/inference.json models/model.pt models/model.ov"


class CompiledNetwork(torch.nn.Module):
    """Predict with a compiled network, for windows of the size that it was exported for.

    It holds no tensors: its weights lie in the file, and cannot be trained nor adapted. The loader of the weights
    compares the file's `weights_sha256` with the weights of the run, see `scripts.models.weights.load_weights`.

    Args:
        path: file of `export_compiled`. OpenVINO's own reader judges the graph in it: use files that you exported.
        precision: `"f32"`, or `"bf16"` for processors with instructions for bfloat16 (`avx512_bf16`, `amx_bf16`).

    Shape:
        - Input: (B, C, X, Y, Z), on the CPU; the windows are predicted one by one, each with all threads.
        - Output: (B, K, X, Y, Z), float32.

    Raises:
        InputError: OpenVINO is missing, the file is not one of `export_compiled`, or the precision is another.
    """

    def __init__(self, path: str | Path, *, precision: Precision = "f32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise InputError(f"cpu_precision {precision!r}: give one of {', '.join(PRECISIONS)}.")
        openvino, self.path = _openvino(), Path(path)
        content = _read(self.path)
        self.window, self.weights_sha256 = tuple(content["window"]), content["weights_sha256"]
        try:
            xml, values = (content[key].numpy() for key in ("xml", "values"))
            graph = openvino.Core().read_model(xml.tobytes(), openvino.Tensor(values))
            shapes = [tuple(port.shape) for port in graph.inputs]
        except RuntimeError as error:
            raise InputError(f"{self.path}: OpenVINO cannot read it; export it again: {_EXPORT}") from error
        if shapes != [(1, *self.window)] or len(graph.outputs) != 1:
            raise InputError(f"{self.path}: its graph has inputs of {shapes}; export it again: {_EXPORT}")
        self._predict = compile_graph(openvino, graph, precision)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Predict; see the class.

        Raises:
            InputError: the windows are of another size.
        """
        if tuple(image.shape[1:]) != self.window:
            raise InputError(
                f"{self.path}: exported for windows of {_by(self.window)}, not {_by(image.shape[1:])} (channels "
                f"first): set patch_size to {list(self.window[1:])}, or export it again with yours."
            )
        windows = convert_to_tensor(image, track_meta=False).detach().float().numpy()
        return torch.from_numpy(np.concatenate([self._predict(window[None]) for window in windows]))

    def check_weights_file(self, path: Path) -> None:
        """Refuse a file of weights that this network was not exported from.

        Raises:
            InputError: there is no such file, or it is another.
        """
        try:
            digest = file_sha256(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}): give the path of the weights.") from error
        if digest != self.weights_sha256:
            raise InputError(f"{self.path}: not exported from {path}; export it again: {_EXPORT}")


def export_compiled(network: torch.nn.Module, example: torch.Tensor, weights: Path, target: Path) -> CompiledNetwork:
    """Convert a network to OpenVINO, write it, and read it back.

    With its size fixed, padding, windows and masks of a Swin UNETR are constants of the trace. Freezing computes them.

    Args:
        network: in evaluation mode.
        example: (1, C, X, Y, Z), of the size of all later inputs.
        weights: the file that the network's weights were loaded from.
        target: file to write, `.ov`.

    Raises:
        InputError: OpenVINO is missing, or the file cannot be written.
    """
    openvino = _openvino()
    traced = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))
    graph = openvino.convert_model(traced, example_input=example, input=[list(example.shape)])
    with tempfile.TemporaryDirectory() as folder:
        parts = {"xml": Path(folder, "graph.xml"), "values": Path(folder, "graph.bin")}
        openvino.serialize(graph, *parts.values())
        content = {key: torch.from_numpy(np.fromfile(path, dtype=np.uint8)) for key, path in parts.items()}
    save({**content, "window": list(example.shape[1:]), "weights_sha256": file_sha256(weights)}, target)
    return CompiledNetwork(target)


def compile_graph(openvino: ModuleType, graph: Any, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a graph for this processor and for as many threads as torch uses.

    OpenVINO would take bfloat16 where there are instructions for it, and set threads by itself.
    """
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(graph, "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"})
    return lambda image: compiled(np.ascontiguousarray(image))[0]


def _openvino() -> ModuleType:
    """Import OpenVINO without `openvino_telemetry`, which reports conversions to Intel; it has a stub in its place."""
    sys.modules.setdefault("openvino_telemetry", None)
    try:
        return import_module("openvino")  # optional
    except ImportError as error:
        raise InputError(
            "inference_cpu.json and .ov files need OpenVINO: pip install openvino, or leave that config out."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    """Read a file of `export_compiled`, and check that it has the form of one."""
    if not path.exists():
        raise InputError(f"{path}: no such file; write it: {_EXPORT}")
    content = read_file(path)
    is_ours = isinstance(content, dict) and content.keys() == _CONTENT.keys()
    if is_ours:
        is_ours = all(isinstance(content[key], kind) for key, kind in _CONTENT.items())
    if is_ours:
        bytes_ = (content[key] for key in ("xml", "values"))
        is_ours = all(tensor.dtype == torch.uint8 and tensor.is_contiguous() for tensor in bytes_)
        is_ours &= len(content["window"]) == 4 and all(isinstance(size, int) for size in content["window"])
    if not is_ours:
        raise InputError(f"{path}: is not a compiled network; write one: {_EXPORT}")
    return content


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
