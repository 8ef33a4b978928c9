"""The spectrum of the training images, and the filter that gives an image the same.

Blur, thick slices, another reconstruction kernel and noise change how much of each spatial frequency an image has.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.layers import separable_filtering
from monai.utils import convert_to_tensor
from scipy.signal import welch

from scripts.common.errors import InputError
from scripts.etta.input_candidates import Intensities

SEGMENT = 32
"""Voxels of a segment of Welch's method; an axis with fewer is not filtered."""
FREQUENCIES = SEGMENT // 2 + 1
MAX_LINES, MIN_LINES = 4096, 10
MIN_BODY = 0.3
"""Least share of a line that is not 0."""
TAPS = 15
LIMITS = 0.25, 3.0
"""Of the filter's response. More would raise noise, less would leave nothing."""
NEGLIGIBLE = 0.02
"""Of the response, below which nothing is filtered."""


@dataclass(frozen=True)
class Sharpness:
    """Filter each axis, to the spectrum of the training images.

    Attributes:
        kernels: of each axis.
    """

    kernels: tuple[tuple[float, ...], ...]

    def __str__(self) -> str:
        return "spectrum"

    def apply(self, x: torch.Tensor, seen: Intensities) -> None:
        """Change x in place, see `scripts.etta.input_candidates.Change`."""
        with torch.autocast(x.device.type, enabled=False):  # half precision would round the image
            found = separable_filtering(x, [torch.tensor(kernel) for kernel in self.kernels], mode="replicate")
        x.copy_(found).clamp_(seen.low, seen.high)


@dataclass(frozen=True)
class TrainingSpectrum:
    """Mean and standard deviation of `log_spectra` over training images, (C, axes, frequencies) each."""

    mean: np.ndarray
    sd: np.ndarray
    cases: int

    @classmethod
    def of(cls, images: Iterable[torch.Tensor]) -> TrainingSpectrum:
        """Compute it from images (C, ...); each channel from those that have it."""
        found = np.stack([log_spectra(image) for image in images])
        with warnings.catch_warnings(category=RuntimeWarning, action="ignore"):  # a channel may be absent from all
            return cls(np.nanmean(found, axis=0), np.nanstd(found, axis=0), len(found))

    def filter_of(self, image: torch.Tensor, channel: int) -> Sharpness | None:
        """Return the filter for a channel of an image.

        The two spectra are compared where they have no means, from the second frequency on. A difference within one
        standard deviation of the training images is none.

        Args:
            image: one case.
            channel: number of it.

        Returns:
            None if it has the spectrum of the training images.

        Shape:
            image: (1, C, ...).

        Raises:
            InputError: the image has other channels or axes than the training images.
        """
        if (image.shape[1], image.ndim - 2) != self.mean.shape[:2]:
            raise InputError(
                f"the training spectrum has {self.mean.shape[0]} channels and {self.mean.shape[1]} axes, the image "
                f"{image.shape[1]} and {image.ndim - 2}: give the file of this network, or None."
            )
        spectra = log_spectra(image[0, channel : channel + 1])[0]
        rows = zip(self.mean[channel], self.sd[channel], spectra, strict=True)
        responses = [_response(mean - one, sd) for mean, sd, one in rows]
        if all(np.abs(response - 1).max() < NEGLIGIBLE for response in responses):
            return None
        return Sharpness(tuple(_kernel(response) for response in responses))


def log_spectra(image: torch.Tensor) -> np.ndarray:
    """Return the logarithm of the power of each frequency along each axis, (C, axes, frequencies), by Welch's method.

    Frequencies are 0 to 0.5 cycles per voxel. NaN for an axis that is too short, or along which there is no body.

    Shape:
        image: (C, ...).
    """
    image = convert_to_tensor(image, track_meta=False)
    found = np.full((len(image), image.ndim - 1, FREQUENCIES), np.nan)
    for number, channel in enumerate(image):
        for axis, n in enumerate(channel.shape):
            lines = channel.movedim(axis, -1)
            places = torch.nonzero(torch.count_nonzero(lines, dim=-1) > MIN_BODY * n)
            if n >= SEGMENT and len(places) >= MIN_LINES:
                some = lines[tuple(places[:: 1 + len(places) // MAX_LINES].T)].double().cpu().numpy()
                power = welch(some, nperseg=SEGMENT)[1].mean(axis=0)
                found[number, axis] = np.log(np.maximum(power, np.finfo(float).tiny))
    return found


def _response(difference: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Return the response of the filter at each frequency; 1 where the difference is not known."""
    if not np.isfinite(difference).all():
        return np.ones(FREQUENCIES)
    shape = difference - difference[1:4].mean()  # of the whole, not the brightness
    shape[:2] = 0
    beyond = np.sign(shape) * np.maximum(0, np.abs(shape) - sd)
    smooth = np.convolve(np.pad(beyond, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
    smooth[0] = 0
    return np.exp(np.clip(smooth / 2, *np.log(LIMITS)))


def _kernel(response: np.ndarray) -> tuple[float, ...]:
    """Return the taps of a filter with about this response, of sum 1: by the window method, with Hann's."""
    taps = np.roll(np.fft.irfft(response, n=SEGMENT), TAPS // 2)[:TAPS] * np.hanning(TAPS + 2)[1:-1]
    return tuple((taps / taps.sum()).tolist())
