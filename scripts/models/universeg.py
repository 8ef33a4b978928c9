"""UniverSeg: a network that segments an image by the example of other images with labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import conv2d, interpolate, leaky_relu, max_pool2d, pad

from scripts.common.errors import InputError


def _convolution(in_channels: int, out_channels: int, *, size: int, gain: float) -> nn.Conv2d:
    """Return a convolution that keeps the image's size, with weights of a normal distribution and biases of 0."""
    convolution = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    nn.init.normal_(convolution.weight, std=gain / (in_channels * size**2) ** 0.5)
    nn.init.zeros_(convolution.bias)
    return convolution


def _named(*names: str, module: nn.Module) -> nn.Module:
    """Return a module inside of others, whose names are those of the published weights."""
    for name in reversed(names):
        module = nn.ModuleDict({name: module})
    return module


class CrossBlock(nn.Module):
    """Let the features of a target and of its support images interact.

    Each support image is joined with the target: `z_i = K * [target, support_i] + b`, without activation. Then
    `target' = f(mean_i z_i)` and `support_i' = g(z_i)`, where f and g are convolutions with leaky ReLU.

    Convolutions are linear, so that K is applied to the target once, and to the mean of the support where only the mean
    of z is needed. The results are those of the formula but for rounding.

    Args:
        target_channels: features of the target, at the input.
        support_channels: features of a support image, at the input.
        cross_channels: features of z.
        channels: features at the output, of both.
    """

    def __init__(self, target_channels: int, support_channels: int, cross_channels: int, channels: int) -> None:
        super().__init__()
        self.target_channels = target_channels
        both = target_channels + support_channels
        self.cross = _named("cross_conv", module=_convolution(both, cross_channels, size=3, gain=1.0))
        self.target, self.support = (
            _named("vmapped", "conv", module=_convolution(cross_channels, channels, size=3, gain=2**0.5))
            for _ in range(2)
        )

    def target_term(self, target: torch.Tensor) -> torch.Tensor:
        """Return the share of z that the target has, with the bias: (B, C, H, W) becomes (B, D, H, W)."""
        cross = self.cross["cross_conv"]
        return conv2d(target, cross.weight[:, : self.target_channels], cross.bias, padding=1)

    def support_term(self, support: torch.Tensor) -> torch.Tensor:
        """Return the share of z that support images have: (..., C, H, W) becomes (..., D, H, W)."""
        weight = self.cross["cross_conv"].weight[:, self.target_channels :]
        return _each(support, lambda images: conv2d(images, weight, padding=1))

    def new_target(self, target_term: torch.Tensor, mean_support: torch.Tensor) -> torch.Tensor:
        """Return the target's features, given the mean of the support's: (B, D, H, W), (B, C, H, W)."""
        return leaky_relu(self.target["vmapped"]["conv"](target_term + self.support_term(mean_support)))

    def new_support(self, target_term: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        """Return the support's features: (B, D, H, W) and (B, S, C, H, W) become (B, S, E, H, W)."""
        z = target_term.unsqueeze(1) + self.support_term(support)
        return leaky_relu(_each(z, self.support["vmapped"]["conv"]))

    def fixed_support(self, support: torch.Tensor) -> torch.Tensor:
        """Return the share of the support's features that no target changes, before the activation."""
        weight = self.support["vmapped"]["conv"].weight
        return _each(self.support_term(support), lambda z: conv2d(z, weight, padding=1))

    def new_fixed_support(self, target_term: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Return the support's features as `new_support`, given what `fixed_support` returned."""
        return leaky_relu(self.support["vmapped"]["conv"](target_term).unsqueeze(1) + fixed)


@dataclass(frozen=True)
class Support:
    """Support images that are prepared for any number of targets.

    Attributes:
        chunks: images and labels, (1 or B, S, 2, H, W) each.
        mean: of all images and labels, (1 or B, 2, H, W).
        fixed: of a single chunk, `CrossBlock.fixed_support` of the first block; else None.
    """

    chunks: tuple[torch.Tensor, ...]
    mean: torch.Tensor
    fixed: torch.Tensor | None


@dataclass
class _Stream:
    """Features of the support images of one chunk, on their way through the blocks.

    Attributes:
        features: after the last block that was applied, (B, S, C, H, W).
        skips: those kept for the decoder; of the first block only their mean, (B, C, H, W).
        done: number of blocks that were applied.
    """

    features: torch.Tensor
    skips: list[torch.Tensor] = field(default_factory=list)
    done: int = 0


class UniverSeg(nn.Module):
    """Segment images by a support set: images with labels of the same task, of which any number is given.

    The published weights have four encoder blocks of 64 features and are meant for images of 128 x 128 pixels, scaled
    to 0..1, with labels of 0 and 1. The order of the support images does not matter, nor does giving all of them twice.

    What does not depend on the target: in the first block, the convolutions of the support images (see
    `CrossBlock.fixed_support`). `prepare` computes them once for any number of targets. Behind the activation of the
    first block, all features of the support depend on the target.

    Memory: a support set of up to `chunk` images is kept whole. Of a larger one, `chunk` images at a time are in
    memory: each block needs the mean over all images, for which the earlier blocks are computed again. This takes about
    three times as long per image and no more memory for more images, but for the images themselves.

    Images whose sizes are not multiples of 2 per pooling are padded by their edge, and the logits cropped.

    Args:
        features: number of features of each encoder block; the decoder has the same, backwards, without the last.
        chunk: number of support images whose features are in memory at once.

    Shape:
        - image: targets (B, 1, H, W).
        - support_images, support_labels: (B, S, 1, H, W), or (1, S, 1, H, W) for all targets, S from 1.
        - Output: logits (B, 1, H, W).

    Raises:
        InputError: there is no support image, or the shapes do not fit.

    Source:
        Butoi et al. UniverSeg: Universal Medical Image Segmentation. ICCV 2023. The architecture is that of the
        published weights, which differs from the paper's figure: no activation behind the cross convolution.
        Departures: linear terms are added in another order; the convolutions of the last block's support, which the
        weights hold and no output depends on, are never computed and need no gradient.

    >>> network = UniverSeg(features=[4, 4])
    >>> network(torch.rand(2, 1, 16, 16), torch.rand(1, 3, 1, 16, 16), torch.ones(1, 3, 1, 16, 16)).shape
    torch.Size([2, 1, 16, 16])
    """

    def __init__(self, *, features: Sequence[int] = (64, 64, 64, 64), chunk: int = 32) -> None:
        super().__init__()
        if len(features) < 2 or min(features) < 1 or chunk < 1:
            raise InputError(f"features is {list(features)} and chunk {chunk}: give two numbers from 1 or more, and 1.")
        inputs = [(1, 2), *((n, n) for n in features[:-1])]
        self.enc_blocks = nn.ModuleList(CrossBlock(*i, n, n) for i, n in zip(inputs, features, strict=True))
        self.dec_blocks, below = nn.ModuleList(), features[-1]
        for n in reversed(features[:-1]):
            self.dec_blocks.append(CrossBlock(below + n, below + n, n, n))
            below = n
        self.out_conv = _named("conv", module=_convolution(below, 1, size=1, gain=1.0))
        self.dec_blocks[-1].support.requires_grad_(False)
        self.chunk = chunk

    def forward(
        self,
        image: torch.Tensor,
        support_images: torch.Tensor | None = None,
        support_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of targets; see the class for shapes."""
        return self.segment(image, self.prepare(support_images, support_labels))

    def prepare(self, images: torch.Tensor | None, labels: torch.Tensor | None) -> Support:
        """Prepare a support set for targets of the same size; see the class."""
        if images is None or labels is None or images.ndim != 5 or 0 in images.shape:
            given = "none" if images is None or labels is None else tuple(images.shape)
            raise InputError(f"support images: {given}; give images and labels (B, S, 1, H, W), at least one image.")
        if images.shape != labels.shape or images.shape[2] != 1:
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise InputError(f"support images and labels have shapes {shapes}: give both as (B, S, 1, H, W).")
        chunks = torch.cat([images, labels.to(images)], dim=2).split(self.chunk, dim=1)
        chunks = tuple(self._padded(chunk) for chunk in chunks)
        mean = sum(chunk.sum(1) for chunk in chunks) / images.shape[1]
        return Support(chunks, mean, self.enc_blocks[0].fixed_support(chunks[0]) if len(chunks) == 1 else None)

    def segment(self, image: torch.Tensor, support: Support) -> torch.Tensor:
        """Return the logits of targets, given what `prepare` returned for images of the same size."""
        target = self._padded(image)
        first = support.chunks[0]
        if image.ndim != 4 or target.shape[1] != 1 or target.shape[2:] != first.shape[3:]:
            shapes = f"{tuple(image.shape)}, support images {tuple(first.shape[3:])}"
            raise InputError(f"the image has shape {shapes}: give (B, 1, H, W) of the size of the support images.")
        terms: list[torch.Tensor] = []
        skips: list[torch.Tensor] = []
        whole = _Stream(first) if support.fixed is not None else None
        for index, block in enumerate([*self.enc_blocks, *self.dec_blocks]):
            if index > len(self.enc_blocks) - 1:
                target = torch.cat([_upsampled(target), skips.pop()], dim=1)
            elif index:
                skips.append(target)
                target = max_pool2d(target, 2)
            mean = self._mean_input(support, terms, whole)
            terms.append(block.target_term(target))
            target = block.new_target(terms[-1], mean)
        return self.out_conv["conv"](target)[..., : image.shape[2], : image.shape[3]]

    def _padded(self, images: torch.Tensor) -> torch.Tensor:
        step = 2 ** (len(self.enc_blocks) - 1)
        below, right = (-n % step for n in images.shape[-2:])
        if not below and not right:
            return images
        padded = pad(images.flatten(0, -4), (0, right, 0, below), mode="replicate")
        return padded.unflatten(0, images.shape[:-3])

    def _mean_input(self, support: Support, terms: list[torch.Tensor], whole: _Stream | None) -> torch.Tensor:
        """Return the mean over the support images of what the next block gets of them.

        Args:
            support: the support set.
            terms: of the target, of the blocks so far.
            whole: the stream of the only chunk, which goes on from block to block; None if there are several.
        """
        if not terms:
            return support.mean
        total, count = 0, sum(chunk.shape[1] for chunk in support.chunks)
        for chunk in support.chunks:
            stream = whole or _Stream(chunk)
            for index in range(stream.done, len(terms)):
                self._advance(stream, index, terms[index], support.fixed)
            total = total + self._mean(stream) * (chunk.shape[1] / count)
        return total

    def _mean(self, stream: _Stream) -> torch.Tensor:
        """Return the mean input of the next block: of the decoder, upsampled with the features kept of the encoder."""
        n, blocks = len(self.enc_blocks), stream.done
        mean = stream.features.mean(1)
        if blocks < n:
            return mean
        skip = stream.skips[-1]
        return torch.cat([_upsampled(mean), skip.mean(1) if skip.ndim == 5 else skip], dim=1)

    def _advance(self, stream: _Stream, index: int, term: torch.Tensor, fixed: torch.Tensor | None) -> None:
        """Apply a block to the support images of a chunk, and pool what the next block of the encoder gets."""
        blocks = [*self.enc_blocks, *self.dec_blocks]
        n = len(self.enc_blocks)
        if index >= n:
            stream.features = torch.cat([_each(stream.features, _upsampled), stream.skips.pop()], dim=2)
        if index == 0 and fixed is not None:
            stream.features = blocks[0].new_fixed_support(term, fixed)
        else:
            stream.features = blocks[index].new_support(term, stream.features)
        if index < n - 1:
            stream.skips.append(stream.features.mean(1) if index == 0 else stream.features)  # the last block: the mean
            stream.features = _each(stream.features, lambda images: max_pool2d(images, 2))
        stream.done = index + 1


def _each(images: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply a function of (N, C, H, W) to (..., C, H, W)."""
    if images.ndim == 4:
        return function(images)
    return function(images.flatten(0, 1)).unflatten(0, images.shape[:2])


def _upsampled(images: torch.Tensor) -> torch.Tensor:
    """Double the size of (N, C, H, W); the corners stay."""
    return interpolate(images, scale_factor=2, mode="bilinear", align_corners=True)
