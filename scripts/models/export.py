"""Export a network for windows of one size: `.ts` for programs without this code, `.ov` to predict faster on a CPU.

    python -m scripts.export_weights configs/inference.json models/model.pt models/model.ts
    python -m scripts.export_weights configs/inference.json models/model.pt models/model.ov

`.ts` is TorchScript, as the MONAI Deploy App SDK takes it; `.ov` is for `inference_cpu.json` and needs OpenVINO.
Settings of the config follow as in `monai.bundle run`: `--patch_size "[64,64,64]" --legacy_merging true`.

`monai.bundle ckpt_export` scripts networks, which fails for every SwinUNETR, or traces them, and a trace at one size is
silently wrong at another. This one traces at `patch_size`, compares the result, and refuses other sizes when it runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import save_net_with_metadata

from scripts.common.command_line import check_command_line, given_settings
from scripts.common.errors import InputError
from scripts.common.files import atomic_path
from scripts.models.compiled import SUFFIX, export_compiled
from scripts.models.weights import load_weights

logger = logging.getLogger(__name__)
TOLERANCE = 1e-4


class FixedSizeNetwork(torch.nn.Module):
    """A traced network that refuses inputs of another size than it was traced with.

    Args:
        network: in evaluation mode.
        example: (1, C, X, Y, Z), of the size of all later inputs.
    """

    def __init__(self, network: torch.nn.Module, example: torch.Tensor) -> None:
        super().__init__()
        self.traced = torch.jit.trace(network, example, check_trace=False)
        self.channels = int(example.shape[1])
        self.x, self.y, self.z = (int(size) for size in example.shape[2:])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Predict; see the class."""
        if image.size(1) != self.channels or image.size(2) != self.x or image.size(3) != self.y:
            raise ValueError("the image has another size than the exported network: give windows of patch_size")
        if image.size(4) != self.z:
            raise ValueError("the image has another size than the exported network: give windows of patch_size")
        return self.traced(image)


def export(config: Path, weights: Path, target: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Write a bundle's network with its weights for windows of `patch_size`, after comparing what it predicts.

    Args:
        config: `inference.json` of a bundle, with `network_def` and `patch_size`; its metadata lie beside it.
        weights: file of the weights.
        target: file to write, `.ts` (with the metadata) or `.ov`.
        settings: values that replace those of the config.

    Raises:
        InputError: the config has no such entries, the weights do not fit, the target has another suffix, or what it
            predicts differs.
    """
    if target.suffix not in (".ts", SUFFIX):
        raise InputError(f"{target}: give a path that ends in .ts (TorchScript) or {SUFFIX} (OpenVINO).")
    parser = ConfigParser()
    parser.read_config(str(config))
    metadata = json.loads((config.parent / "metadata.json").read_text(encoding="utf-8"))
    parser.read_meta(metadata)
    parser.update(dict(settings or {}))
    if "patch_size" not in parser:
        raise InputError(f"{config}: has no patch_size; only networks of windows are exported.")
    network = parser.get_parsed_content("network_def").eval()
    load_weights(network, weights)
    channels = len(metadata["network_data_format"]["inputs"]["image"]["channel_def"])
    shape = (1, channels, *parser.get_parsed_content("patch_size"))
    images = torch.rand((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(), atomic_path(target) as temporary:
        warnings.simplefilter("ignore")  # of sizes that become constants, which is wanted, and of NumPy in MONAI
        if target.suffix == SUFFIX:
            exported = export_compiled(network, images[:1], weights, temporary)
        else:
            exported = torch.jit.script(FixedSizeNetwork(network, images[:1]))
            with temporary.open("wb") as file:
                save_net_with_metadata(exported, file, meta_values=metadata)
        _compare(network, exported, images[1:], config)
    logger.info("wrote %s for windows of %s", target, "x".join(map(str, shape[2:])))


def _compare(network: torch.nn.Module, exported: torch.nn.Module, image: torch.Tensor, config: Path) -> None:
    """Refuse an exported network that predicts something else, and log how long both take.

    Raises:
        InputError: a logit differs by more than `TOLERANCE` of the largest.
    """
    expected, seconds = _timed(network, image)
    predicted, exported_seconds = _timed(exported, image)
    difference = float((predicted - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    if not difference <= TOLERANCE:
        raise InputError(f"{config}: the trace differs by {difference:g} from its network; it cannot be exported.")
    logger.info(
        "a window takes %.2f s, with this code %.2f s; the logits differ by at most %.1g of the largest",
        exported_seconds, seconds, difference,
    )  # fmt: skip


def _timed(network: torch.nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Predict twice; return the second prediction and its seconds."""
    network(image)
    start = time.perf_counter()
    return network(image), time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 where nothing was written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m scripts.export_weights", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="inference.json of the bundle")
    parser.add_argument("weights", type=Path, help="file of its weights, e.g. models/model.pt")
    parser.add_argument("target", type=Path, help="file to write, models/model.ts or models/model.ov")
    options, words = parser.parse_known_args(argv)
    as_run = ["", "run", "--config_file", str(options.config), *words]
    try:
        check_command_line(as_run)
        settings = {name: value for name, value in given_settings(as_run).items() if name != "config_file"}
        export(options.config, options.weights, options.target, settings)
    except (InputError, OSError) as error:
        logger.error("%s", error)
        return 2
    return 0
