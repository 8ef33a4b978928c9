"""Domain shifts: eight ways in which an image can differ from the training images, at three strengths each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.transforms import AdjustContrast, GaussianSmooth, RandBiasField
from torch.nn.functional import grid_sample, interpolate

Shift = Callable[[torch.Tensor, float], torch.Tensor]


def contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Shrink intensities towards their mean."""
    return (image - image.mean()) * factor + image.mean()


def bias(image: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Multiply by a smooth field, the same for all strengths but for its amplitude."""
    field = RandBiasField(prob=1, coeff_range=(0, coefficient)).set_random_state(1)
    return torch.as_tensor(field(image[0]))[None]


def noise(image: torch.Tensor, sd: float) -> torch.Tensor:
    """Add Gaussian noise."""
    return image + sd * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))


def low_resolution(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Resample to a grid `factor` times as coarse, and back."""
    coarse = interpolate(image, scale_factor=1 / factor, mode="trilinear")
    return interpolate(coarse, size=image.shape[2:], mode="trilinear")


def ghosting(image: torch.Tensor, intensity: float) -> torch.Tensor:
    """Attenuate every fourth line of k-space, which repeats the patient along the first axis."""
    lines = torch.ones(image.shape[2])
    lines[4::4] = 1 - intensity
    return torch.fft.ifftn(torch.fft.fftn(image[0, 0]) * lines[:, None, None]).real[None, None]


def gamma(image: torch.Tensor, exponent: float) -> torch.Tensor:
    """Raise intensities, scaled to 0..1, to a power."""
    return torch.as_tensor(AdjustContrast(gamma=exponent)(image[0]))[None]


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Smooth by a Gaussian of `sigma` voxels."""
    return torch.as_tensor(GaussianSmooth(sigma=sigma)(image[0]))[None]


SHIFTS: dict[str, tuple[Shift, tuple[float, ...]]] = {
    "clean": (lambda image, _: image, (0, 0, 0)),
    "gamma above 1": (gamma, (1.3, 1.7, 2.2)),
    "gamma below 1": (gamma, (0.75, 0.6, 0.45)),
    "contrast": (contrast, (0.85, 0.7, 0.5)),
    "bias field": (bias, (0.2, 0.4, 0.6)),
    "noise": (noise, (0.05, 0.1, 0.2)),
    "blur": (blur, (0.5, 1.0, 1.5)),
    "low resolution": (low_resolution, (1.5, 2, 3)),
    "ghosting": (ghosting, (0.3, 0.6, 0.9)),
}


def warped(image: torch.Tensor, label: torch.Tensor, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Deform an image and its label smoothly, for another anatomy in the same scan.

    Args:
        image: one scan.
        label: its label map.
        seed: of the deformation; 0 for none.

    Shape:
        image (1, 1, X, Y, Z), label (X, Y, Z).
    """
    if seed == 0:
        return image, label
    generator = torch.Generator().manual_seed(seed)
    knots = torch.randn(1, 3, 5, 5, 5, generator=generator)
    bend = interpolate(knots, size=image.shape[2:], mode="trilinear", align_corners=True) * 0.06
    straight = torch.nn.functional.affine_grid(torch.eye(3, 4)[None], list(image.shape), align_corners=True)
    grid = straight + bend.movedim(1, -1)
    moved = grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)
    of_label = grid_sample(label[None, None].float(), grid, mode="nearest", padding_mode="border", align_corners=True)
    return moved, of_label[0, 0].long()
