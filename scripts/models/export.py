"""Export a network to TorchScript for programs without this code, such as the MONAI Deploy App SDK.

    python -m scripts.export_weights configs/inference.json models/model.pt models/model.ts

`monai.bundle ckpt_export` scripts networks, which fails for every SwinUNETR, or traces them, and a trace at one size is
silently wrong at another. This one traces at `patch_size`, compares the result, and refuses other sizes when it runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.data import save_net_with_metadata

from scripts.common.errors import InputError
from scripts.common.files import atomic_path
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


def export(config: Path, weights: Path, target: Path) -> None:
    """Write a bundle's network with its weights and metadata as TorchScript.

    Args:
        config: `inference.json` of a bundle, with `network_def` and `patch_size`; its metadata lie beside it.
        weights: file of the weights.
        target: file to write, `.ts`.

    Raises:
        InputError: the config has no such entries, the weights do not fit, or the trace predicts something else.
    """
    parser = ConfigParser()
    parser.read_config(str(config))
    metadata = json.loads((config.parent / "metadata.json").read_text(encoding="utf-8"))
    parser.read_meta(metadata)
    if "patch_size" not in parser:
        raise InputError(f"{config}: has no patch_size; only networks of windows are exported.")
    network = parser.get_parsed_content("network_def").eval()
    load_weights(network, weights)
    channels = len(metadata["network_data_format"]["inputs"]["image"]["channel_def"])
    shape = (1, channels, *parser.get_parsed_content("patch_size"))
    images = torch.rand((3, *shape[1:]), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants, which is wanted, and of NumPy in MONAI
        scripted = torch.jit.script(FixedSizeNetwork(network, images[:1]))
        difference = float((scripted(images[1:]) - network(images[1:])).abs().max())
    if not difference <= TOLERANCE:
        raise InputError(f"{config}: the trace differs by {difference:g} from its network; it cannot be exported.")
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        save_net_with_metadata(scripted, file, meta_values=metadata)
    logger.info("wrote %s for windows of %s", target, "x".join(map(str, shape[2:])))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 where nothing was written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m scripts.export_weights", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="inference.json of the bundle")
    parser.add_argument("weights", type=Path, help="file of its weights, e.g. models/model.pt")
    parser.add_argument("target", type=Path, help="file to write, e.g. models/model.ts")
    options = parser.parse_args(argv)
    try:
        export(options.config, options.weights, options.target)
    except (InputError, OSError) as error:
        logger.error("%s", error)
        return 2
    return 0
