"""The network of UltraBones100k: a feature pyramid over ResNet-34, for bone surfaces in B-mode ultrasound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from monai.networks.nets import ResNet
from torch import nn
from torch.nn.functional import interpolate, pad

from scripts.common.errors import InputError
from scripts.models.weight_files import load_state_dict_file

STRIDE = 32
_GROUPS = 32


def _upsampled(features: torch.Tensor, factor: int) -> torch.Tensor:
    return interpolate(features, scale_factor=factor, mode="bilinear", align_corners=True)


class _Level(nn.Module):
    """Add the features of a stage of the encoder to those of the level below, which has half its size."""

    def __init__(self, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(skip_channels, channels, 1)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return interpolate(below, scale_factor=2, mode="nearest") + self.skip_conv(skip)


class _Unit(nn.Module):
    """Convolve, normalize by groups and clip below 0; double the size if asked to."""

    def __init__(self, in_channels: int, channels: int, *, upsample: bool) -> None:
        super().__init__()
        convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.block = nn.Sequential(convolution, nn.GroupNorm(_GROUPS, channels), nn.ReLU(inplace=True))
        self.upsample = upsample

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.block(features)
        return _upsampled(features, 2) if self.upsample else features


class _Branch(nn.Module):
    """Bring the features of one level of the pyramid to a quarter of the image's size."""

    def __init__(self, in_channels: int, channels: int, *, doublings: int) -> None:
        super().__init__()
        inputs = [in_channels] + [channels] * (max(1, doublings) - 1)
        self.block = nn.Sequential(*(_Unit(n, channels, upsample=doublings > 0) for n in inputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.block(features)


class _Decoder(nn.Module):
    """Join the stages of the encoder in a pyramid and sum its levels at a quarter of the image's size."""

    def __init__(self, stages: Sequence[int], pyramid_channels: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.p5 = nn.Conv2d(stages[3], pyramid_channels, 1)
        self.p4, self.p3, self.p2 = (_Level(n, pyramid_channels) for n in reversed(stages[:3]))
        self.seg_blocks = nn.ModuleList(_Branch(pyramid_channels, channels, doublings=n) for n in (3, 2, 1, 0))
        self.dropout = nn.Dropout2d(dropout)
        for convolution in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)

    def forward(self, stages: Sequence[torch.Tensor]) -> torch.Tensor:
        levels = [self.p5(stages[3])]
        for level, skip in zip((self.p4, self.p3, self.p2), reversed(stages[:3]), strict=True):
            levels.append(level(levels[-1], skip))
        return self.dropout(sum(branch(level) for branch, level in zip(self.seg_blocks, levels, strict=True)))


class UltraBones(nn.Module):
    """Segment the surface of bone in B-mode images of ultrasound.

    MONAI's `ResNet` is the encoder. Images whose sizes are not multiples of 32 are padded by their edge, and the logits
    cropped. The defaults are those of the published weights, which have 23,149,121 parameters and are meant for
    images of 256 x 256 pixels.

    Args:
        blocks: residual blocks of each of the four stages.
        features: channels of each stage.
        pyramid_channels: channels of each level of the pyramid.
        segmentation_channels: channels of the branches that are summed, a multiple of 32.
        dropout: share of the summed channels that training sets to 0.
        encoder_weights: file of a ResNet's weights for 3 or 1 channels, as torchvision publishes them for ImageNet,
            with which the encoder starts; "" starts it at random.

    Shape:
        - Input: (B, 1, H, W).
        - Output: logits (B, 1, H, W).

    Raises:
        InputError: a size is impossible, or the file's weights do not fit the encoder.

    Source:
        Kirillov et al. Panoptic Feature Pyramid Networks. CVPR 2019; the sizes, names and order of the published
        weights of UltraBones100k.

    >>> network = UltraBones(blocks=[1, 1, 1, 1], features=[4, 4, 4, 4], pyramid_channels=8, segmentation_channels=32)
    >>> network.eval()(torch.rand(2, 1, 50, 70)).shape
    torch.Size([2, 1, 50, 70])
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int] = (3, 4, 6, 3),
        features: Sequence[int] = (64, 128, 256, 512),
        pyramid_channels: int = 256,
        segmentation_channels: int = 128,
        dropout: float = 0.2,
        encoder_weights: str | Path = "",
    ) -> None:
        super().__init__()
        if len(blocks) != 4 or len(features) != 4 or min(*blocks, *features, pyramid_channels) < 1:
            raise InputError(f"blocks is {list(blocks)} and features {list(features)}: give four numbers from 1 each.")
        if segmentation_channels < _GROUPS or segmentation_channels % _GROUPS:
            raise InputError(f"segmentation_channels is {segmentation_channels}: give a multiple of {_GROUPS}.")
        self.encoder = ResNet(
            "basic",
            list(blocks),
            list(features),
            spatial_dims=2,
            n_input_channels=1,
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        )
        self.decoder = _Decoder(features, pyramid_channels, segmentation_channels, dropout)
        self.segmentation_head = nn.Sequential(nn.Conv2d(segmentation_channels, 1, 1))
        nn.init.xavier_uniform_(self.segmentation_head[0].weight)
        nn.init.zeros_(self.segmentation_head[0].bias)
        if encoder_weights:
            load_encoder(self.encoder, encoder_weights)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of images; see the class for shapes."""
        if image.ndim != 4 or image.shape[1] != 1 or 0 in image.shape:
            raise InputError(f"the image has shape {tuple(image.shape)}: give (B, 1, H, W).")
        height, width = image.shape[2:]
        if height % STRIDE or width % STRIDE:
            image = pad(image, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        features = self.decoder(self._stages(image))
        return _upsampled(self.segmentation_head(features), 4)[..., :height, :width]

    def _stages(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return what each stage of the encoder makes of an image, at 1/4, 1/8, 1/16 and 1/32 of its size."""
        encoder = self.encoder
        features = encoder.maxpool(encoder.act(encoder.bn1(encoder.conv1(image))))
        stages = []
        for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            features = layer(features)
            stages.append(features)
        return stages


def load_encoder(encoder: ResNet, path: str | Path) -> None:
    """Start an encoder of one channel with a ResNet's weights, in place.

    A first convolution of three channels is summed over them, so that a gray image gives what it gave as a gray picture
    of three colours. The classifier is left out, and counters of batches that old files lack start at 0.

    Args:
        encoder: of an image of one channel.
        path: a state dict, as torchvision publishes them.

    Raises:
        InputError: there is no such file, it cannot be read, or a name, shape or value does not fit.
    """
    from scripts.models.weights import check_values, describe_shapes  # here: programs that only predict lack ignite

    state = {key: value for key, value in load_state_dict_file(path).items() if not key.startswith("fc.")}
    own = encoder.state_dict()
    if (first := state.get("conv1.weight")) is not None and first.ndim == 4 and first.shape[1] == 3:
        state["conv1.weight"] = first.sum(1, keepdim=True)
    state = {key: value for key, value in own.items() if key.endswith(".num_batches_tracked")} | state
    wrong = [key for key in own if key not in state] + [key for key in state if key not in own]
    reshaped = [describe_shapes(key, state, own) for key in own if key in state and state[key].shape != own[key].shape]
    if problems := [*wrong, *reshaped]:
        raise InputError(
            f"{path}: weights of another encoder, {len(problems)} tensors are missing, unexpected or of another shape "
            f"(first: {problems[0]}): give those of a ResNet with the network's blocks and features."
        )
    check_values(encoder, state, path)
    encoder.load_state_dict(state)
