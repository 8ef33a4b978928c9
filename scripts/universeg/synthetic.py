"""Synthetic tasks: images of random shapes, of which one is to be segmented."""

from __future__ import annotations

import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

MIN_REGIONS, MAX_REGIONS = 4, 12
MIN_SHARE, MAX_SHARE = 0.01, 0.4
"""Shares of the image that the region to be segmented may take."""
_ATTEMPTS = 20


def synthetic_task(n: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images of one task with their masks.

    A task has a map of regions that smooth noise makes, and for each region a mean intensity and a noise. Each image of
    the task deforms the map, shifts the means a little, and adds a smooth field of brightness. The mask is the same
    region in all images.

    Args:
        n: number of images.
        size: rows and columns.
        generator: of all random numbers.

    Shape:
        Images, in 0..1, and masks, 0 and 1: (n, size, size).

    Source:
        Our own design, after the idea of the paper: shapes without meaning make tasks of which there are any number.
    """
    regions = int(torch.randint(MIN_REGIONS, MAX_REGIONS + 1, (), generator=generator))
    grid = int(torch.randint(3, 7, (), generator=generator))
    fields = smooth_noise((regions, size, size), grid, generator)
    means = torch.rand(regions, generator=generator)
    noise = 0.01 + 0.08 * torch.rand(regions, generator=generator)
    maps = torch.cat([deform(fields[None], generator).argmax(1) for _ in range(n)])
    shift = 0.04 * torch.randn(n, regions, generator=generator)
    values = (means + shift).gather(1, maps.flatten(1)).view_as(maps)
    values = values + noise[maps] * torch.randn(maps.shape, generator=generator)
    values = values + 0.1 * smooth_noise((n, size, size), 3, generator)
    low, high = values.flatten(1).amin(1), values.flatten(1).amax(1)
    images = (values - low[:, None, None]) / (high - low)[:, None, None]
    return images, (maps == _region(maps, regions, generator)).float()


def _region(maps: torch.Tensor, regions: int, generator: torch.Generator) -> int:
    """Choose a region that is neither tiny nor most of any image; if there is none, the one that is seen the most."""
    shares = torch.stack([(maps == region).flatten(1).float().mean(1) for region in range(regions)])
    fits = ((shares > MIN_SHARE) & (shares < MAX_SHARE)).all(1).nonzero().flatten()
    if not len(fits):
        return int(shares.amin(1).argmax())
    return int(fits[torch.randint(len(fits), (), generator=generator)])


def smooth_noise(shape: tuple[int, int, int], grid: int, generator: torch.Generator) -> torch.Tensor:
    """Draw noise of about unit variance that varies over the distance of `grid` cells per image: (N, H, W)."""
    noise = torch.randn(1, shape[0], grid, grid, generator=generator)
    return interpolate(noise, shape[1:], mode="bicubic", align_corners=True)[0]


def deform(images: torch.Tensor, generator: torch.Generator, *, strength: float = 0.12) -> torch.Tensor:
    """Turn, scale, shift and warp images, all in the same way.

    Args:
        images: (N, C, H, W).
        generator: of the random numbers.
        strength: standard deviation of turn (rad, twice), scale and shift, and of the warp as share of half the image.
    """
    turn, scale, dx, dy = (strength * torch.randn(4, generator=generator)).tolist()
    turn, scale = torch.tensor(2 * turn), 1 + scale
    rows = torch.tensor([[scale * turn.cos(), -turn.sin(), dx], [turn.sin(), scale * turn.cos(), dy]])
    grid = affine_grid(rows[None].expand(len(images), -1, -1), list(images.shape), align_corners=False)
    warp = smooth_noise((2, *images.shape[2:]), 5, generator).movedim(0, -1)
    return grid_sample(images, grid + 0.5 * strength * warp, padding_mode="border", align_corners=False)
