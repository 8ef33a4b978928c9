"""The networks of `benchmarks.etta_shift`, trained with the bundle's own commands, and their test cases."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.networks.nets import SwinUNETR, UNet
from monai.transforms import CenterSpatialCropd, Compose, CropForegroundd, Identityd, Lambdad, Orientationd

from benchmarks.etta.shifts import warped
from scripts.common.files import write_json
from scripts.data.transforms import Spacingd
from scripts.etta.spectrum import TrainingSpectrum
from scripts.etta.spectrum_file import read_spectrum
from scripts.io.loading import LoadVolumed
from scripts.models.swin_unetr import patch_merging
from scripts.models.weights import load_weights
from tools.demo import BTCV, FINE_TUNE, PAIR, REDUCED_NETWORK, REDUCED_TRAINING, run, write_pair
from tools.phantom import write_cohort

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "demo" / "etta"
CT = ROOT.parent / "shared" / "data" / "ct_torso"
ARCHITECTURE = {
    "in_channels": 1,
    "out_channels": 14,
    "feature_size": 12,
    "depths": (1, 1, 1, 1),
    "window_size": 4,
    "downsample": patch_merging(False),
}
UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 14,
    "channels": [12, 24, 48, 96],
    "strides": [2, 2, 2],
    "num_res_units": 1,
    "norm": ["instance", {"affine": True}],
}
WINDOW = 64
HU_WINDOW = (-175.0, 250.0)
TEST_SEED = 1000  # of the test phantoms, which were not used for training or tuning


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        seed: of its phantoms and its training.
        epochs: number of training epochs.
        start: network to fine-tune on the real scan; None for training on phantoms.
        spacing_mm: voxel size of its input along each axis.
        intensity_prob: probability of scaled and of shifted intensities in training.
        unet: a U-Net with instance normalization instead of the bundle's network.
    """

    seed: int
    epochs: int
    start: str | None = None
    spacing_mm: float = 4.0
    intensity_prob: float = 0.0
    unet: bool = False


RECIPES = {
    "well trained": Recipe(seed=0, epochs=45),
    "under-trained": Recipe(seed=7, epochs=25),
    "real CT": Recipe(seed=0, epochs=60, start="well trained", spacing_mm=5.0),
    "U-Net": Recipe(seed=0, epochs=45, unet=True),
    "U-Net augmented": Recipe(seed=0, epochs=45, unet=True, intensity_prob=0.5),
    "U-Net real CT": Recipe(seed=0, epochs=60, start="U-Net", spacing_mm=5.0, unet=True),
}


@dataclass(frozen=True)
class Case:
    """A case to test a network on.

    Attributes:
        network: key of `RECIPES`.
        number: of the case; of the real scan, 0 is the scan itself and the others are deformed.
        image: file of the image.
        label: file of its label map.
    """

    network: str
    number: int
    image: Path
    label: Path


def checkpoint(name: str) -> Path:
    """Return the path of the weights of a network."""
    return FOLDER / name.replace(" ", "_") / "models" / "model.pt"


def train(name: str) -> None:
    """Train a network, and first the one that it starts from, unless its weights exist."""
    path, recipe = checkpoint(name), RECIPES[name]
    if path.is_file():
        return
    if recipe.start is not None:
        train(recipe.start)
    out = path.parents[1]
    schedule: dict[str, Any] = {}
    if recipe.start is None:
        write_cohort(out / "data", cases=10, seed=recipe.seed)
    else:
        write_pair(out / "data", CT / "image.nii.gz", CT / "label_btcv13.nii.gz")
        schedule = {**PAIR, "pretrained": str(checkpoint(recipe.start))}
    settings = {**REDUCED_NETWORK, **REDUCED_TRAINING, **BTCV, **schedule, "seed": recipe.seed}
    settings |= {"max_epochs": recipe.epochs, "val_interval": recipe.epochs // 5}
    settings |= {"spacing_mm": [recipe.spacing_mm] * 3, "intensity_prob": recipe.intensity_prob}
    settings |= {"dataset_dir": str(out / "data"), "ckpt_dir": str(path.parent), "output_dir": str(out / "runs")}
    configs = ["train.json"]
    if recipe.unet:
        settings = {key: value for key, value in settings.items() if not key.startswith("network_def#")}
        write_json(out / "unet.json", {"network_def": UNET})
        configs.append(os.path.relpath(out / "unet.json", FINE_TUNE / "configs"))
    run(FINE_TUNE, settings, *configs)


def trained(names: Sequence[str]) -> list[str]:
    """Train networks; return the names but for that of the real scan, if that is not here."""
    found = [name for name in names if RECIPES[name].start is None or CT.is_dir()]
    for name in names:
        if name in found:
            train(name)
        else:
            logger.warning("left out %s: there is no folder %s", name, CT)
    return found


def _arguments(component: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in component.items() if not key.startswith("_")}


@cache
def network(name: str) -> torch.nn.Module:
    """Load a network."""
    module = UNet(**_arguments(UNET)) if RECIPES[name].unet else SwinUNETR(**ARCHITECTURE)
    load_weights(module, str(checkpoint(name)))
    return module.eval()


@cache
def spectrum(name: str) -> TrainingSpectrum | None:
    """Read the spectrum of a network's training images, which its training wrote."""
    return read_spectrum(checkpoint(name).with_name("spectrum.json"))


def cases(name: str, count: int, *, seed: int = TEST_SEED, first: int = 0) -> list[Case]:
    """List the test cases of a network: phantoms, or the real scan, undeformed and deformed.

    Args:
        name: key of `RECIPES`.
        count: number of cases.
        seed: of the phantoms.
        first: number of the first deformation of the real scan; 0 is the scan itself.
    """
    if RECIPES[name].start is not None:
        numbers = range(first, first + count)
        return [Case(name, number, CT / "image.nii.gz", CT / "label_btcv13.nii.gz") for number in numbers]
    folder = FOLDER / f"phantoms_{seed}"
    write_cohort(folder, cases=count + 2, seed=seed)
    images = sorted((folder / "imagesTr").iterdir())[:count]
    return [Case(name, n, image, folder / "labelsTr" / image.name) for n, image in enumerate(images)]


@cache
def read(case: Case, *, normalized: bool = True, whole: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Preprocess a case for its network.

    Args:
        case: the case.
        normalized: False leaves Hounsfield units.
        whole: False crops the middle window, which is most of the image.

    Shape:
        image (1, 1, X, Y, Z), label (X, Y, Z).
    """
    keys, recipe = ["image", "label"], RECIPES[case.network]
    transforms = [
        LoadVolumed(keys),
        Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        Spacingd(keys, pixdim=[recipe.spacing_mm] * 3, mode=["bilinear", "nearest"]),
        Lambdad("image", normalize) if normalized else Identityd("image"),
        CropForegroundd(keys, source_key="image", select_fn=lambda x: x > (0 if normalized else HU_WINDOW[0])),
        Identityd(keys) if whole else CenterSpatialCropd(keys, roi_size=(WINDOW,) * 3),
    ]
    data = Compose(transforms)({"image": str(case.image), "label": str(case.label)})
    image, label = (MetaTensor(data[key]).as_tensor() for key in keys)
    return warped(image[None].float(), label[0].long(), seed=case.number if recipe.start else 0)


def normalize(image: torch.Tensor) -> torch.Tensor:
    """Map Hounsfield units of the soft-tissue window to 0 to 1 and clip, as the bundle does."""
    low, high = HU_WINDOW
    return ((image - low) / (high - low)).clamp(0, 1)
