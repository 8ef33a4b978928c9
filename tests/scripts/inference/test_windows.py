import logging
from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer as MonaiInferer
from monai.networks.nets import SwinUNETR

from scripts.common.errors import InputError
from scripts.inference import windows
from scripts.inference.windows import SlidingWindowInferer, choose_device

GB = 10**9
SMALL = {"roi_size": (8, 8, 8), "overlap": 0.5, "mode": "gaussian", "padding_mode": "replicate"}


class Counting(torch.nn.Module):
    """Logits that depend on the place in the window; 3 channels, unless `channels` says otherwise."""

    def __init__(self, inputs=1, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv3d(inputs, 4, 3, padding=1), torch.nn.GELU(), torch.nn.Conv3d(4, channels, 3, padding=1)
        )
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.body(x)


def body_in_air(channels=1, size=(24, 20, 32), air=0.0):
    image = torch.full((1, channels, *size), air)
    image[..., 3:9, 4:10, 2:9] = torch.rand(1, channels, 6, 6, 7)
    return image


def predict(inferer, image, network):
    with torch.no_grad():
        return inferer(image, network.eval())


def both(image, network, **options):
    """Return the logits of MONAI's inferer and of ours, and how many windows each predicted."""
    expected = predict(MonaiInferer(**SMALL, **options), image, network)
    n, network.seen = network.seen, 0
    ours = predict(SlidingWindowInferer(**SMALL, **options, out_channels=3), image, network)
    return expected, ours, n, network.seen


@pytest.mark.parametrize("sw_batch_size", [1, 4, 7])
@pytest.mark.parametrize(("channels", "air"), [(1, 0.0), (4, 0.0), (2, -1.5)])
def test_logits_are_those_of_monai_though_windows_of_air_are_predicted_once(sw_batch_size, channels, air):
    image = body_in_air(channels, air=air)
    expected, ours, n, n_ours = both(image, Counting(channels), sw_batch_size=sw_batch_size)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert (n, n_ours) == (5 * 4 * 7, 3 * 3 * 3 + 1)


def test_logits_are_bitwise_those_of_monai_where_no_window_is_uniform():
    image = torch.rand(1, 1, 20, 11, 5)  # thinner than a window: padded
    expected, ours, n, n_ours = both(image, Counting(), sw_batch_size=4)
    assert torch.equal(ours, expected)
    assert n == n_ours


def test_several_uniform_contents_are_kept_apart():
    image = torch.zeros(1, 1, 8, 8, 48)
    image[..., 16:32] = 1.0
    image[..., 32:] = torch.rand(1, 1, 8, 8, 16)
    expected, ours, n, n_ours = both(image, Counting(), sw_batch_size=3)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert n - n_ours == 4  # of 3 windows of zeros and 3 of ones, one each is predicted


def test_batch_of_images_shares_its_windows_of_air():
    image = torch.cat([body_in_air(), torch.zeros(1, 1, 24, 20, 32)])
    expected, ours, n, n_ours = both(image, Counting(), sw_batch_size=4)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert (n, n_ours) == (2 * 140, 28)


def test_one_channel_with_contrast_makes_the_window_predicted():
    image = torch.zeros(1, 2, 8, 8, 24)
    image[:, 1] = torch.rand(1, 8, 8, 24)
    _, _, n, n_ours = both(image, Counting(2), sw_batch_size=1)
    assert n == n_ours


def test_swin_unetr_labels_are_those_of_monai():
    """The logits differ by rounding: sums are in another order where fewer windows are predicted at once."""
    torch.manual_seed(1)
    network = SwinUNETR(1, 5, feature_size=12, depths=(1, 1, 1, 1), window_size=4)
    image = torch.zeros(1, 1, 64, 32, 80)
    image[..., 10:50, 5:25, 5:30] = torch.rand(40, 20, 25)
    options = {"roi_size": (64, 32, 32), "overlap": 0.5, "mode": "gaussian", "sw_batch_size": 2}
    expected = predict(MonaiInferer(**options), image, network)
    ours = predict(SlidingWindowInferer(**options, out_channels=5), image, network)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.argmax(1), expected.argmax(1))


def test_reuse_can_be_switched_off():
    network = Counting()
    predict(SlidingWindowInferer(**SMALL, out_channels=3, reuse_uniform=False), body_in_air(), network)
    assert network.seen == 140


def test_every_window_is_predicted_where_the_network_gets_more_than_it():
    calls = []

    def network(window, *_, **__):
        calls.append(len(window))
        return window

    air = torch.zeros(1, 1, 16, 8, 8)
    SlidingWindowInferer(8, out_channels=1, overlap=0.5, with_coord=True)(air, network)
    SlidingWindowInferer(8, out_channels=1, overlap=0.5)(air, network, condition=torch.zeros_like(air))
    SlidingWindowInferer(8, out_channels=1, overlap=0.5)(air, network, "argument")
    assert calls == [1] * 9


def test_network_with_several_outputs_is_refused_unless_nothing_is_reused():
    with pytest.raises(InputError, match="returns a tuple: set inferer#reuse_uniform to False"):
        SlidingWindowInferer(8, out_channels=1)(torch.zeros(1, 1, 8, 8, 8), lambda window: (window, window))
    options = {"out_channels": 1, "reuse_uniform": False}
    first, _ = SlidingWindowInferer(8, **options)(torch.ones(1, 1, 8, 8, 8), lambda window: (window, window + 0))
    assert (first == 1).all()


def test_metadata_are_kept():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    image = MetaTensor(body_in_air(), affine=affine)
    assert torch.equal(predict(SlidingWindowInferer(**SMALL, out_channels=3), image, Counting()).affine, affine)


@pytest.mark.parametrize(("free", "expected"), [(4 * GB, "cuda:0"), (3 * GB, "cuda:0"), (3 * GB - 1, "cpu")])
def test_sum_is_kept_on_the_device_of_the_network_if_both_fit(free, expected):
    assert choose_device(torch.device("cuda:0"), sums=1 * GB, network=2 * GB, free=free) == torch.device(expected)


def provided(monkeypatch, free, *, device="auto", on="cuda:0"):
    """Let an inferer decide for an image of 0.6 GB of sums and 1.77 GB for a window; return it."""
    monkeypatch.setattr(windows, "free_bytes", lambda _: free)
    inferer = SlidingWindowInferer(96, out_channels=14, device=device, progress=True)
    image = SimpleNamespace(shape=torch.Size([1, 1, 200, 200, 250]), itemsize=4, device=torch.device(on))
    inferer._provide_memory(image, SimpleNamespace(roi_size=(96, 96, 96)), 60, 44)
    return inferer


def test_sum_that_does_not_fit_on_the_gpu_is_kept_on_the_cpu(monkeypatch, caplog):
    """MONAI's inferer keeps the sums of images above `cpu_thresh` voxels on the CPU."""
    assert provided(monkeypatch, 2 * GB).cpu_thresh == 200 * 200 * 250 - 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "60 windows, 44 to predict: up to 1.77 GB on cuda:0, 2.00 GB are free; their sum takes 0.60 GB on cpu"
    )


@pytest.mark.parametrize(("free", "device"), [(3 * GB, "auto"), (2 * GB, "cuda:0"), (2 * GB, "cpu")])
def test_sum_stays_where_it_fits_or_was_sent_to(monkeypatch, free, device):
    assert provided(monkeypatch, free, device=device).cpu_thresh is None


def test_too_little_memory_on_the_cpu_is_said_before_the_first_window(monkeypatch, caplog):
    provided(monkeypatch, 2 * GB, on="cpu")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("; lower sw_batch_size or patch_size if memory runs out")
    assert "up to 2.37 GB on cpu, 2.00 GB are free" in record.getMessage()


@pytest.mark.parametrize("device", [None, "auto"])
def test_none_means_auto(device):
    assert SlidingWindowInferer(8, out_channels=1, device=device).device is None


@pytest.mark.parametrize(("progress", "level"), [(True, logging.INFO), (False, logging.DEBUG)])
def test_windows_memory_and_time_are_logged(caplog, progress, level):
    caplog.set_level(logging.DEBUG)
    predict(SlidingWindowInferer(**SMALL, out_channels=3, progress=progress), body_in_air(), Counting())
    ours = [record for record in caplog.records if record.name == "scripts.inference.windows"]
    assert [record.levelno for record in ours] == [level, level]
    assert ours[0].getMessage().startswith("140 windows, 28 to predict: up to 0.00 GB on cpu, ")
    assert ours[1].getMessage().startswith("expected time of 28 windows: ")
