"""Compute outputs of MONAI 1.4.0 for the tests of `scripts.models.swin_unetr.LegacyPatchMerging`.

Run once, with MONAI 1.4.0 before the installed version on the path:

    pip download --no-deps --dest ../monai14 monai==1.4.0
    python -m zipfile -e ../monai14/monai-1.4.0-py3-none-any.whl ../monai14/unpacked
    PYTHONPATH=../monai14/unpacked python -m tools.legacy_fixture tests/fixtures/legacy_patch_merging.npz

No weights are stored: `fill_by_formula` gives both versions the same ones.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import monai
import numpy as np
import torch
from monai.networks.nets.swin_unetr import PatchMerging, SwinUNETR

# This leaves 2 x 1 x 1 voxels at the bottleneck: instance norm fails on a single one.
IMAGE_SHAPE = (1, 1, 64, 32, 32)
FEATURES_SHAPE = (2, 5, 4, 3, 6)  # (B, D, H, W, C), odd and even sizes
TINY_NETWORK = {
    "in_channels": 1,
    "out_channels": 2,
    "feature_size": 12,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 1, 1),
}
STRIDE = 4  # every 4th voxel of the logits along each axis is stored

logger = logging.getLogger(__name__)


def wave(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    """Return float64 values of mean 0 and amplitude 1 that depend only on the arguments."""
    index = torch.arange(np.prod(shape), dtype=torch.float64)
    return torch.sin(0.731 * index**1.13 + phase).reshape(shape)


def fill_by_formula(module: torch.nn.Module) -> torch.nn.Module:
    """Set every parameter of `module` by a formula, in the order of names; returns it in float64."""
    module.double().eval()
    with torch.no_grad():
        for phase, (_, parameter) in enumerate(sorted(module.named_parameters())):
            values = wave(tuple(parameter.shape), float(phase))
            if parameter.ndim == 1:
                parameter.copy_(0.5 + 0.2 * values)
            else:
                fan_in = parameter.numel() / parameter.shape[0]
                parameter.copy_(values * (2.0 / fan_in) ** 0.5)
    return module


def outputs(merging: torch.nn.Module, network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Run the filled modules on the fixed inputs.

    Args:
        merging: patch merging of `FEATURES_SHAPE[-1]` channels.
        network: a `SwinUNETR` of `TINY_NETWORK`.

    Returns:
        `merged` (2, 3, 2, 2, 12) and `logits` (1, 2, 16, 8, 8), float64.
    """
    image = wave(IMAGE_SHAPE, 0.5)
    with torch.no_grad():
        merged = fill_by_formula(merging)(wave(FEATURES_SHAPE, 0.25))
        logits = fill_by_formula(network)(image)[..., ::STRIDE, ::STRIDE, ::STRIDE]
    return {"merged": merged.numpy(), "logits": logits.numpy()}


def main() -> None:
    """Write the fixture.

    Raises:
        ValueError: the MONAI on the path is not 1.4.0.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path, help="file to write: tests/fixtures/legacy_patch_merging.npz")
    path = parser.parse_args().path
    if monai.__version__ != "1.4.0":
        raise ValueError(f"MONAI {monai.__version__} is on the path: put 1.4.0 before it, see the docstring.")
    numbers = outputs(PatchMerging(FEATURES_SHAPE[-1]), SwinUNETR(img_size=IMAGE_SHAPE[2:], **TINY_NETWORK))
    np.savez_compressed(path, monai=monai.__version__, **numbers)
    logger.info("wrote %s, %d bytes", path, path.stat().st_size)


if __name__ == "__main__":
    main()
