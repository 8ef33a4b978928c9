"""A tiny network to adapt, and what compares it before and after."""

import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from scripts.etta.inferer import ETTAInferer
from scripts.etta.settings import ETTASettings

NORMS = {
    "batch": lambda: nn.BatchNorm3d(6),
    "group": lambda: nn.GroupNorm(2, 6),
    "instance": lambda: nn.InstanceNorm3d(6, affine=True),
    "layer": lambda: ChannelsLast(nn.LayerNorm(6)),
}
INFERER = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=2, overlap=0.5, mode="gaussian")
LENIENT = ETTASettings(adapt="weights", steps=2, lr=0.02, min_entropy_drop=0.0, volume_band=(0, 100))


class ChannelsLast(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Tiny(nn.Module):
    """Convolution, normalization, convolution; fails at the call `fail_at`."""

    def __init__(self, norm="layer", classes=3, fail_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), NORMS[norm](), nn.GELU(), nn.Conv3d(6, classes, 1))
        self.fail_at, self.calls = fail_at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("out of order")
        return self.body(x)


def image(seed=0, *, size=12, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, size, size, size, generator=generator).cumsum(2)


def state(network):
    parameters = [(p.requires_grad, p.grad, p.detach().clone()) for p in network.parameters()]
    return parameters, [b.clone() for b in network.buffers()], [m.training for m in network.modules()]


def assert_restored(network, before):
    parameters, buffers, modes = state(network)
    for (flag, grad, value), (flag_before, grad_before, value_before) in zip(parameters, before[0], strict=True):
        assert flag == flag_before
        assert grad is grad_before
        assert torch.equal(value, value_before)
    assert all(map(torch.equal, buffers, before[1]))
    assert modes == before[2]


def plain(network, x, inferer=INFERER):
    with torch.no_grad():
        return inferer(x, network)


def predict(network, x, settings=LENIENT, inferer=INFERER):
    adapting = ETTAInferer(inferer, settings)
    with torch.no_grad():
        return adapting(x, network), adapting.outcomes


INPUT = ETTASettings(adapt="input")
PROTOTYPES = (0.0, 0.25, 0.5, 0.8)


class Prototypes(nn.Module):
    """Classes by their intensities: certain near these, uncertain elsewhere. It has no parameters."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.cat([8 * torch.exp(-(((x - p) / 0.08) ** 2)) for p in PROTOTYPES], dim=1)


def blocks(*, size=12, channels=1):
    """An image of blocks in the intensities of `Prototypes`, and of a few brighter voxels, (1, C, X, Y, Z)."""
    cells = torch.randint(0, 4, (1, channels, *[size // 4] * 3), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(PROTOTYPES)[cells].repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    x[..., :2, 0, 0] = torch.tensor([0.0, 1.0])
    return x
