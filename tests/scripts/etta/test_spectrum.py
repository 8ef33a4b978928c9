import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from scripts.common.errors import InputError
from scripts.etta.input_candidates import changed, intensities
from scripts.etta.spectrum import FREQUENCIES, LIMITS, TrainingSpectrum, log_spectra

SIZE = (64, 48, 40)


def texture(seed, *, size=SIZE, channels=1):
    """An image of random structures of some voxels, between 0.1 and 0.9, (1, C, X, Y, Z)."""
    noise = np.random.default_rng(seed).standard_normal((1, channels, *size))
    for axis in range(2, noise.ndim):
        noise = gaussian_filter1d(noise, 0.8, axis=axis, mode="wrap")
    spread = noise.std(axis=tuple(range(2, noise.ndim)), keepdims=True)
    return torch.from_numpy(np.clip(0.5 + 0.15 * noise / spread, 0.1, 0.9)).float()


def blurred(image, sigma, axes=(0, 1, 2)):
    found = image.numpy()
    for axis in axes:
        found = gaussian_filter1d(found, sigma, axis=axis + 2)
    return torch.from_numpy(found)


@pytest.fixture(scope="module")
def trained():
    return TrainingSpectrum.of(texture(seed)[0] for seed in range(4))


def apply(change, image):
    return changed(image, {0: (change,)}, intensities(image))


def error(image, reference):
    inside = (..., *[slice(8, -8)] * 3)
    return float((image - reference)[inside].std())


def test_image_like_the_training_images_is_not_filtered(trained):
    for seed in range(10, 14):
        change = trained.filter_of(texture(seed), 0)
        assert change is None or error(apply(change, texture(seed)), texture(seed)) < 0.01


@pytest.mark.parametrize("sigma", [0.5, 0.8])
def test_blur_is_undone(trained, sigma):
    sharp = texture(10)
    x = blurred(sharp, sigma)
    assert error(apply(trained.filter_of(x, 0), x), sharp) < 0.6 * error(x, sharp)


def test_noise_is_smoothed(trained):
    sharp = texture(10)
    x = sharp + 0.1 * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))
    assert error(apply(trained.filter_of(x, 0), x), sharp) < 0.8 * error(x, sharp)


def test_only_the_axis_that_is_blurred_is_filtered(trained):
    kernels = trained.filter_of(blurred(texture(10), 0.8, axes=(2,)), 0).kernels
    assert [round(kernel[len(kernel) // 2], 1) for kernel in kernels[:2]] == [1.0, 1.0]
    assert kernels[2][len(kernels[2]) // 2] > 1.5


def test_brightness_and_contrast_are_kept(trained):
    x = blurred(texture(10), 0.8)
    found = apply(trained.filter_of(x, 0), x)
    assert float(found.mean()) == pytest.approx(float(x.mean()), abs=0.005)
    change, again = trained.filter_of(x, 0), trained.filter_of(0.5 * x + 0.2, 0)
    np.testing.assert_allclose(again.kernels, change.kernels, atol=1e-6)
    assert all(sum(kernel) == pytest.approx(1) for kernel in change.kernels)


def test_half_precision_does_not_round_the_image(trained):
    x = blurred(texture(10), 0.8)
    change = trained.filter_of(x, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = apply(change, x)
    assert torch.equal(found, apply(change, x))


def test_response_is_limited(trained):
    (kernel, *_) = trained.filter_of(blurred(texture(10), 2.5), 0).kernels
    response = np.abs(np.fft.rfft(kernel, 256))
    assert response.max() < 1.1 * LIMITS[1]


def test_differences_within_the_training_images_are_none():
    spread = TrainingSpectrum.of(blurred(texture(seed), sigma)[0] for seed, sigma in enumerate((0.01, 0.5, 0.7)))
    x = blurred(texture(10), 0.4)
    change = spread.filter_of(x, 0)
    assert change is None or error(apply(change, x), x) < 0.02


def test_short_axes_and_channels_without_a_body_are_left_alone(trained):
    x = texture(0, size=(64, 48, 20))
    spectra = log_spectra(x[0])
    assert spectra.shape == (1, 3, FREQUENCIES)
    assert np.isnan(spectra[0, 2]).all()
    assert np.isfinite(spectra[0, :2]).all()
    kernel = trained.filter_of(blurred(x, 0.8), 0).kernels[2]
    np.testing.assert_allclose(kernel, np.eye(1, len(kernel), len(kernel) // 2)[0], atol=1e-9)
    assert trained.filter_of(torch.zeros(1, 1, *SIZE), 0) is None


def test_channel_is_measured_where_cases_have_it():
    both, second = texture(0, channels=2)[0], texture(1, channels=2)[0]
    second[0] = 0
    spectrum = TrainingSpectrum.of([both, second])
    np.testing.assert_allclose(spectrum.mean[0], log_spectra(both)[0])
    assert (spectrum.sd[0] == 0).all()
    assert (spectrum.sd[1] > 0).any()


def test_lines_of_air_do_not_count():
    x = texture(0)
    framed = torch.nn.functional.pad(x, [0, 0, 200, 200, 0, 0])
    np.testing.assert_allclose(log_spectra(framed[0])[0, 0], log_spectra(x[0])[0, 0])


def test_image_of_other_channels_is_refused(trained):
    with pytest.raises(InputError, match="1 channels and 3 axes, the image 2 and 3: give the file of this network"):
        trained.filter_of(texture(0, channels=2), 0)
