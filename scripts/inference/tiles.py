"""Label maps on the grid of the file from logits on the network's grid, a tile at a time.

Linear interpolation is a convex combination of the eight corners of a cell. A class that is the largest at all corners
is the largest everywhere inside; one that is below a mean of others at all corners is the largest nowhere. So only the
classes that can win in a tile are interpolated there, and none where one class wins at all corners.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import torch

from scripts.inference.axis_maps import AxisMaps

TILE, GPU_TILE = 32, 64  # voxels along an axis: a class of a tile stays in the cache
ToLabelMap = Callable[[Callable[[int], torch.Tensor], int], torch.Tensor]
"""Makes class ids from a function that returns the logits of one channel, and the number of channels."""


def winning_classes(
    logits_of: Callable[[int], torch.Tensor], n: int, *, ids: Sequence[int] | None = None
) -> torch.Tensor:
    """Find the class with the largest logit in each voxel, keeping a running maximum.

    Args:
        logits_of: returns the logits of one class; called once per class, in order. Those of the first are overwritten.
        n: number of classes, up to 256.
        ids: their class ids in ascending order, by default from 0.

    Shape:
        Logits of any shape become class ids of that shape, uint8.
    """
    ids = range(n) if ids is None else ids
    best = logits_of(0)
    classes = torch.full(best.shape, ids[0], dtype=torch.uint8, device=best.device)
    for index in range(1, n):
        values = logits_of(index)
        won = (values > best).to(torch.uint8)
        torch.maximum(classes, won.mul_(ids[index]), out=classes)  # the later class has the higher id
        torch.maximum(best, values, out=best)
    return classes


@dataclass(frozen=True)
class Span:
    """A run of voxels along one axis, the run of the network's voxels that it needs, and the weights of these."""

    voxels: slice
    source: slice
    weights: torch.Tensor


def spans(weights: torch.Tensor, tile: int) -> list[Span]:
    """Split the voxels of an axis that lie within the crop into runs of at most `tile`.

    Args:
        weights: of `AxisMaps`.
        tile: number of voxels, and number of cells of the network's grid, that a run has at most.

    Shape:
        weights: (voxels, network's voxels).
    """
    inside = weights.any(1).nonzero().flatten().tolist()
    used = {row: weights[row].nonzero().flatten().tolist() for row in inside}
    runs: list[list[int]] = []
    for row in inside:
        corners = used[row] + used[runs[-1][0]] if runs else []
        if not runs or len(runs[-1]) == tile or max(corners) - min(corners) > tile:
            runs.append([])
        runs[-1].append(row)
    found = []
    for run in runs:
        corners = [corner for row in run for corner in used[row]]
        voxels, source = slice(run[0], run[-1] + 1), slice(min(corners), max(corners) + 1)
        found.append(Span(voxels, source, weights[voxels, source].to(torch.float32)))
    return found


def contenders(block: torch.Tensor) -> list[int]:
    """Find the classes that can be the largest somewhere between the voxels of a block.

    A class is left out if it is below `_mean_of_winners` at every voxel: then one of these is above it in each cell.

    Args:
        block: finite logits; the same number is subtracted from all logits of a voxel, which changes no winner.

    Returns:
        Class ids in ascending order.

    Shape:
        block: (C, x, y, z).
    """
    block -= block.amax(0)
    winners = block.flatten(1).amax(1).eq(0).nonzero().flatten()
    if len(winners) == 1:
        return winners.tolist()
    block -= _mean_of_winners(block[winners])
    return block.flatten(1).amax(1).ge(0).nonzero().flatten().tolist()


def _mean_of_winners(winners: torch.Tensor) -> torch.Tensor:
    """Return the mean of the classes that are the largest at the corners of a cell; where cells meet, the least one.

    Shape:
        winners: (W, x, y, z), 0 where a class is the largest, become (x, y, z).
    """
    share = (winners == 0).to(winners.dtype)
    for axis in (1, 2, 3):
        n = share.shape[axis] - 1
        share = share.narrow(axis, 0, n) + share.narrow(axis, 1, n) if n else share
    share /= share.sum(0)
    floor, cells = torch.zeros_like(winners[0]), share.shape[1:]
    for corner in product(*(range(size - n + 1) for size, n in zip(floor.shape, cells, strict=True))):
        at = tuple(slice(start, start + n) for start, n in zip(corner, cells, strict=True))
        mean = (share * winners[(slice(None), *at)]).sum(0)
        floor[at] = torch.minimum(floor[at], mean)
    return floor


def interpolate(channel: torch.Tensor, tile: Sequence[Span]) -> torch.Tensor:
    """Interpolate a channel of a block of the network's grid in a tile.

    Shape:
        channel: (x, y, z) becomes (X, Y, Z).
    """
    x, y, z = (span.weights.to(channel.device) for span in tile)
    rows = y @ (channel @ z.T)
    return (x @ rows.flatten(1)).unflatten(1, rows.shape[1:])


def kept_classes(chosen: Collection[int] | None) -> torch.Tensor:
    """Return what becomes of each of the 256 class ids: itself if it is chosen, else 0."""
    ids = torch.arange(256, dtype=torch.uint8)
    return ids if chosen is None else ids * torch.isin(ids, torch.tensor(sorted(chosen), dtype=torch.uint8))


def label_tile(
    block: torch.Tensor, tile: Sequence[Span], to_label_map: ToLabelMap, chosen: Collection[int] | None
) -> torch.Tensor:
    """Return the class ids of a tile, or of one voxel if all are equal.

    Args:
        block: logits, finite; overwritten.
        tile: the span of each axis.
        to_label_map: see `restore`.
        chosen: see `restore`; where none of them can win, the tile is of any other class.

    Shape:
        block: (C, x, y, z) becomes (X, Y, Z) or (1, 1, 1), uint8.
    """
    if to_label_map is not winning_classes:
        signs = block > 0
        if (signs == signs[:, :1, :1, :1]).all():
            return to_label_map(block[:, :1, :1, :1].__getitem__, len(block))
        return to_label_map(lambda channel: interpolate(block[channel], tile), len(block))
    ids = contenders(block)
    if len(ids) == 1 or (chosen is not None and not set(ids) & set(chosen)):
        return torch.full((1, 1, 1), ids[0], dtype=torch.uint8, device=block.device)
    return winning_classes(lambda index: interpolate(block[ids[index]], tile), len(ids), ids=ids)


def restore(
    logits: torch.Tensor,
    maps: AxisMaps,
    to_label_map: ToLabelMap = winning_classes,
    chosen: Collection[int] | None = None,
) -> torch.Tensor:
    """Make the label map on the grid of the file.

    On the CPU the tiles are divided among threads, as many as torch would use for one operation.

    Args:
        logits: on the network's grid, of any floating type and on any device; read in place.
        maps: from `scripts.inference.axis_maps.way_back`.
        to_label_map: `winning_classes`, or a function of the signs of the logits alone.
        chosen: the class ids that are kept, others become 0; by default all.

    Shape:
        Logits (C, x, y, z) become class ids (X, Y, Z), uint8, on the CPU.
    """
    logits = logits.detach().permute(0, *(axis + 1 for axis in maps.axes))
    classes = torch.zeros(maps.shape, dtype=torch.uint8, device=logits.device)
    kept = kept_classes(chosen).to(logits.device)
    inference = torch.is_inference_mode_enabled()  # a mode of the thread

    def fill(tile: Sequence[Span]) -> None:
        with torch.inference_mode(inference):
            block = logits[(slice(None), *(span.source for span in tile))]
            block = block.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
            if not block.sum().isfinite():  # a product with 0 would spread infinite logits over the tile
                block = block.nan_to_num(nan=-1e30, posinf=1e30, neginf=-1e30)
            found = label_tile(block, tile, to_label_map, chosen)
            classes[tuple(span.voxels for span in tile)] = found if chosen is None else kept[found.long()]

    threads = torch.get_num_threads()
    size, workers = (GPU_TILE, 1) if logits.is_cuda else (TILE, threads)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(fill, product(*(spans(weights, size) for weights in maps.weights))):
                pass
    finally:
        torch.set_num_threads(threads)
    return classes.cpu()
