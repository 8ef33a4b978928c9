"""Shifts that the candidates of `scripts.etta.input_candidates` were not made for, at three strengths each.

They act on Hounsfield units and are then windowed and clipped, as a scan is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import GaussianSmooth
from skimage.transform import iradon, radon
from torch.nn.functional import avg_pool3d, interpolate

from benchmarks.etta.networks import HU_WINDOW, normalize

AIR_HU, CENTRE = -1000.0, 30  # a slice of the middle
ATTENUATION_PER_HU = 0.019 * 4 / 1000  # of a voxel of 4 mm
ARTERIAL_HU = {1: 30, 2: 40, 3: 40, 6: -20, 8: 120, 9: -40, 10: -40, 11: 20}  # class to change
ENHANCING = (1, 2, 3, 6, 8, 9, 10, 11)
UNENHANCED_HU = 45.0


@dataclass
class Scan:
    """A case to shift.

    Attributes:
        hu: image in Hounsfield units, (1, 1, X, Y, Z) in RAS.
        label: label map, (X, Y, Z).
        generator: of what is random in the shift.
    """

    hu: torch.Tensor
    label: torch.Tensor
    generator: torch.Generator

    def normal(self) -> torch.Tensor:
        """Return normal random numbers of the image's shape."""
        return torch.randn(self.hu.shape, generator=self.generator)


Unseen = Callable[[Scan, float], torch.Tensor]


def _hounsfield(image: torch.Tensor) -> torch.Tensor:
    """Turn 0 to 1 into Hounsfield units."""
    return HU_WINDOW[0] + image * (HU_WINDOW[1] - HU_WINDOW[0])


def s_curve(scan: Scan, slope: float) -> torch.Tensor:
    """Steepen the middle of the range, as a display curve does."""
    curve = torch.sigmoid(slope * (normalize(scan.hu) - 0.5))
    ends = torch.sigmoid(torch.tensor([-slope / 2, slope / 2]))
    return _hounsfield((curve - ends[0]) / (ends[1] - ends[0]))


def window_width(scan: Scan, factor: float) -> torch.Tensor:
    """Window with another width and the level of the bundle."""
    level = sum(HU_WINDOW) / 2
    return level + (scan.hu - level) / factor


def window_level(scan: Scan, offset: float) -> torch.Tensor:
    """Window with another level."""
    return scan.hu - offset


def _radial_frequency(scan: Scan) -> torch.Tensor:
    """Return the frequency of an axial slice's spectrum, 0 to about 0.7 cycles per voxel, (X, Y, 1)."""
    axes = [torch.fft.fftfreq(n) for n in scan.hu.shape[2:4]]
    return torch.hypot(axes[0][:, None], axes[1][None])[..., None]


def _filtered(image: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    return torch.fft.ifft2(torch.fft.fft2(image, dim=(2, 3)) * response, dim=(2, 3)).real


def kernel(scan: Scan, sharpness: float) -> torch.Tensor:
    """Reconstruct with another kernel: by the projection-slice theorem a radial filter of each axial slice.

    Above 0 it raises high frequencies, and noise with the spectrum of a ramp; below 0 it lowers them.
    """
    frequency = _radial_frequency(scan)
    response = torch.exp(sharpness * (frequency / 0.35) ** 2)
    noise = _filtered(scan.normal(), frequency) * (80 * max(0, sharpness))
    return _filtered(scan.hu, response) + noise


def metal_streaks(scan: Scan, ceiling: float) -> torch.Tensor:
    """Add the streaks of two metal rods whose projections lose their photons above `ceiling` (attenuation lengths)."""
    hu, (width, depth) = scan.hu[0, 0].numpy().copy(), scan.hu.shape[2:4]
    size, angles = max(width, depth), np.linspace(0, 180, 90, endpoint=False)
    x, y = np.meshgrid(np.arange(width), np.arange(depth), indexing="ij")
    rods = sum((x - width * at) ** 2 + (y - depth * 0.4) ** 2 < 4 for at in (0.35, 0.6)) > 0
    for z in range(CENTRE - 8, CENTRE + 8):
        attenuation = np.maximum(0, hu[..., z] + 1000) * ATTENUATION_PER_HU + 0.6 * rods
        square = np.pad(attenuation, ((0, size - width), (0, size - depth)))  # as iradon's result is
        lengths = radon(square, angles, circle=False)
        measured = -np.log(np.exp(-lengths) + np.exp(-ceiling))
        streaks = iradon(measured - lengths, angles, circle=False, output_size=size)[:width, :depth]
        hu[..., z] += np.where(rods, 3000, streaks / ATTENUATION_PER_HU)
    return torch.from_numpy(hu)[None, None].float()


def rician(scan: Scan, sd: float) -> torch.Tensor:
    """Take the magnitude after noise in both parts of a complex signal."""
    return _hounsfield(torch.hypot(normalize(scan.hu) + sd * scan.normal(), sd * scan.normal()))


def motion(scan: Scan, voxels: float) -> torch.Tensor:
    """Take a third of the lines of k-space from the patient at another place."""
    spectrum = torch.fft.fftn(scan.hu - AIR_HU, dim=(2, 3, 4))
    phase = torch.fft.fftfreq(scan.hu.shape[2])[:, None, None] * voxels
    moved = spectrum * torch.exp(-2j * torch.pi * phase)
    lines = torch.rand(scan.hu.shape[3], generator=scan.generator) < 1 / 3
    lines[0] = False
    mixed = torch.where(lines[:, None], moved, spectrum)
    return torch.fft.ifftn(mixed, dim=(2, 3, 4)).abs() + AIR_HU


def slice_thickness(scan: Scan, slices: float) -> torch.Tensor:
    """Average slices along the body and interpolate them back."""
    n = int(slices)
    thick = avg_pool3d(scan.hu, (1, 1, n), ceil_mode=True, count_include_pad=False)
    return interpolate(thick, size=scan.hu.shape[2:], mode="trilinear")


def _per_class(scan: Scan, change: dict[int, float]) -> torch.Tensor:
    """Add a value to each class, with smooth edges."""
    field = torch.zeros(scan.label.shape)
    for number, value in change.items():
        field[scan.label == number] = value
    return scan.hu + torch.as_tensor(GaussianSmooth(sigma=0.7)(field[None]))[None]


def arterial_phase(scan: Scan, share: float) -> torch.Tensor:
    """Move the organs from the portal-venous to the arterial phase."""
    return _per_class(scan, {number: share * value for number, value in ARTERIAL_HU.items()})


def less_contrast_agent(scan: Scan, share: float) -> torch.Tensor:
    """Move the organs that enhance towards an unenhanced scan."""
    means = {number: float(scan.hu[0, 0][scan.label == number].mean()) for number in ENHANCING}
    return _per_class(scan, {n: share * (UNENHANCED_HU - m) for n, m in means.items() if np.isfinite(m)})


def field_of_view(scan: Scan, radius: float) -> torch.Tensor:
    """Replace what lies outside a cylinder along the body by air."""
    axes = [torch.linspace(-1, 1, n) for n in scan.hu.shape[2:4]]
    inside = torch.hypot(axes[0][:, None], axes[1][None])[..., None] < radius
    return torch.where(inside, scan.hu, AIR_HU)


def gain_drift(scan: Scan, change: float) -> torch.Tensor:
    """Multiply the intensities by a gain that rises linearly along the body."""
    gain = 1 + change * torch.linspace(-1, 1, scan.hu.shape[4])
    return _hounsfield(normalize(scan.hu) * gain)


def spikes(scan: Scan, amplitude_hu: float) -> torch.Tensor:
    """Add two plane waves, as spikes in k-space do."""
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in scan.hu.shape[2:]], indexing="ij"))
    waves = torch.zeros(scan.hu.shape[2:])
    for _ in range(2):
        cycles = 0.1 + 0.25 * torch.rand(3, generator=scan.generator)  # per voxel
        waves += torch.cos(2 * torch.pi * torch.tensordot(cycles, index, dims=1))
    return scan.hu + amplitude_hu * waves


def mixed(first: Unseen, first_strength: float, second: Unseen) -> Unseen:
    """Apply one shift after another."""

    def shift(scan: Scan, strength: float) -> torch.Tensor:
        return second(Scan(first(scan, first_strength), scan.label, scan.generator), strength)

    return shift


UNSEEN: dict[str, tuple[Unseen, tuple[float, ...]]] = {
    "clean": (lambda scan, _: scan.hu, (0, 0, 0)),
    "S-curve": (s_curve, (4, 6, 9)),
    "window width": (window_width, (0.75, 1.4, 2)),
    "window level": (window_level, (-40, 40, 80)),
    "sharp kernel": (kernel, (0.2, 0.4, 0.7)),
    "smooth kernel": (kernel, (-0.6, -1.2, -2.4)),
    "metal streaks": (metal_streaks, (5.5, 4.5, 3.5)),
    "Rician noise": (rician, (0.05, 0.1, 0.15)),
    "motion": (motion, (1.5, 3, 5)),
    "slice thickness": (slice_thickness, (2, 3, 4)),
    "arterial phase": (arterial_phase, (0.3, 0.6, 1)),
    "less contrast agent": (less_contrast_agent, (0.3, 0.6, 1)),
    "field of view": (field_of_view, (0.95, 0.85, 0.7)),
    "gain drift": (gain_drift, (0.15, 0.3, 0.45)),
    "k-space spikes": (spikes, (20, 40, 70)),
    "window and noise": (mixed(window_width, 1.5, rician), (0.03, 0.06, 0.1)),
    "thick slices and S-curve": (mixed(slice_thickness, 2, s_curve), (4, 6, 9)),
    "drift and smooth kernel": (mixed(gain_drift, 0.3, kernel), (-0.6, -1.2, -2.4)),
}
