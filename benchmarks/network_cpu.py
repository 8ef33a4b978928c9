"""Ways to run the Swin UNETR of the bundles on a CPU: `python -m benchmarks.network_cpu`.

All ways predict the same windows with the same weights, one after the other in each round of one run, so that a
competing load meets all of them. The fastest way that keeps the labels is named at the end. `--window 64 --feature_size
48 --threads 1` and so on choose the case; `--weights` takes trained weights of a network given by `--arguments`.
ONNX Runtime takes part if `onnx` and `onnxruntime` are installed.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.networks.nets import SwinUNETR

from scripts.common.files import write_table
from scripts.models.compiled import PRECISIONS, CompiledNetwork, export_compiled
from scripts.models.swin_unetr import patch_merging
from scripts.models.weight_files import save
from scripts.models.weights import load_weights

RESULTS = Path(__file__).parent / "results"
KEEPS_LABELS = 0.9999  # share of voxels with the same label
Way = Callable[[torch.Tensor], torch.Tensor]
logger = logging.getLogger(__name__)


def ways(make: Callable[..., SwinUNETR], example: torch.Tensor, names: list[str]) -> Iterator[tuple[str, Way]]:
    """Yield the ways to predict that can be made here, the reference first; log why another cannot.

    Args:
        make: returns the network with its weights, with or without flash attention.
        example: (1, C, X, Y, Z).
        names: the ways to make; all if empty.
    """
    flash = make(use_flash_attention=True)
    makers = {
        "eager": lambda: make(),
        "flash attention": lambda: flash,
        "flash, channels_last_3d": lambda: _channels_last(make(use_flash_attention=True)),
        "flash, bfloat16 autocast": lambda: _autocast(flash),
        "torch.compile, freezing": lambda: _inductor(flash, example),
        "ONNX Runtime": lambda: _onnx_runtime(flash, example),
        **{f"OpenVINO, {name}": lambda name=name: _openvino(flash, example, name) for name in PRECISIONS},
    }
    for name, maker in makers.items():
        if names and name not in names and name != "eager":
            continue
        try:
            made = maker()
            made(example)
            logger.info("%s: ready", name)
            yield name, made
        except Exception as error:  # a backend's own kinds; the others are still to be measured
            logger.info("%s: not measured (%s)", name, str(error).strip().partition("\n")[0])


def measure(made: dict[str, Way], images: torch.Tensor, repeats: int) -> pd.DataFrame:
    """Predict in rounds; return a row for each way, with the median of its ratios to the reference of its round.

    Args:
        made: way to function, the reference first.
        images: (N, C, X, Y, Z), of which each round takes the next.
        repeats: rounds after the first, which warms up and compares what is predicted.
    """
    reference, *_ = made
    rows, seconds = {}, {name: [] for name in made}
    expected = made[reference](images[:1])
    for name, way in made.items():
        logits = way(images[:1])
        rows[name] = {
            "max_difference": float((logits - expected).abs().max() / expected.abs().max()),
            "same_labels": float((logits.argmax(1) == expected.argmax(1)).double().mean()),
        }
    for round_ in range(repeats):
        index = round_ % len(images)
        for name, way in made.items():
            start = time.perf_counter()
            way(images[index : index + 1])
            seconds[name].append(time.perf_counter() - start)
    for name, row in rows.items():
        ratios = np.divide(seconds[reference], seconds[name])
        row |= {"seconds": min(seconds[name]), "speedup": np.median(ratios), "lowest": ratios.min()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("way").reset_index()


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _channels_last(network: torch.nn.Module) -> Way:
    network = network.to(memory_format=torch.channels_last_3d)
    return lambda image: network(image.contiguous(memory_format=torch.channels_last_3d))


def _autocast(network: torch.nn.Module) -> Way:
    def predict(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(image).float()

    return predict


def _inductor(network: torch.nn.Module, example: torch.Tensor) -> Way:
    torch._inductor.config.freezing = True
    compiled = torch.compile(network, dynamic=False)
    compiled(example)
    return compiled


def _onnx_runtime(network: torch.nn.Module, example: torch.Tensor) -> Way:
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "graph.onnx"))
        torch.onnx.export(network, (example,), path, dynamo=False, input_names=["image"], opset_version=17)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _openvino(network: torch.nn.Module, example: torch.Tensor, precision: str) -> Way:
    with tempfile.TemporaryDirectory() as folder:
        weights, target = Path(folder, "model.pt"), Path(folder, "model.ov")
        save(network.state_dict(), weights)
        export_compiled(network, example, weights, target)
        return CompiledNetwork(target, precision=precision)


def main() -> int:
    """Measure, print the table, and write `results/network_cpu.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, nargs="+", default=[64, 96], help="edges of the windows in voxels")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--feature_size", type=int, default=48)
    parser.add_argument("--arguments", type=json.loads, default={}, help="of SwinUNETR, as JSON")
    parser.add_argument("--weights", type=Path, help="trained weights (default: random ones)")
    parser.add_argument("--images", type=Path, help="NumPy file of (N, 1, X, Y, Z) windows (default: random values)")
    parser.add_argument("--ways", nargs="+", default=[], help="those to compare with eager mode (default: all)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)

    def make(**changes: bool) -> SwinUNETR:
        torch.manual_seed(0)
        arguments = {"feature_size": options.feature_size, **options.arguments, **changes}
        network = SwinUNETR(1, 14, downsample=patch_merging(False), **arguments).eval()
        if options.weights:
            load_weights(network, options.weights)
        return network

    tables = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for edge in options.window:
            torch.manual_seed(0)
            images = torch.rand(2, 1, edge, edge, edge)
            if options.images:
                images = torch.from_numpy(np.load(options.images))
            with _quiet(), torch.no_grad():
                table = measure(dict(ways(make, images[:1], options.ways)), images, options.repeats)
            table = table.assign(window=edge, threads=threads, feature_size=options.feature_size)
            logger.info("\n%s", table.to_string(index=False, float_format="%.5g"))
            keeping = table[table["same_labels"] >= KEEPS_LABELS]
            logger.info("fastest that keeps the labels: %s", keeping.loc[keeping["speedup"].idxmax(), "way"])
            tables.append(table)
    if not options.weights:
        write_table(pd.concat(tables), RESULTS / "network_cpu.csv")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
